"""A node and a router beside it, for benchmarks of BGP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.bgp import link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, new_netns


@contextmanager
def beside() -> Iterator[tuple[Path, NetworkNamespace]]:
    """A fresh namespace as the node, linked to a router's: a folder, and the router's namespace."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(new_netns())
        tor = NetworkNamespace("tor")
        stack.callback(tor.close)
        link(tor)
        yield folder, tor


@contextmanager
def rack(tor_config: str) -> Iterator[tuple[Path, Bird, NetworkNamespace]]:
    """The same with a BIRD that runs."""
    with beside() as (folder, tor):
        bird = Bird(tor, folder / "tor", tor_config)
        try:
            bird.start()
            yield folder, bird, tor
        finally:
            bird.stop()
