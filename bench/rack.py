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
def rack(tor_config: str) -> Iterator[tuple[Path, Bird, NetworkNamespace]]:
    """A fresh namespace as the node, and a router: a folder, its BIRD, which runs, and its namespace."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(new_netns())
        tor = NetworkNamespace("tor")
        stack.callback(tor.close)
        link(tor)
        bird = Bird(tor, folder / "tor", tor_config)
        stack.callback(bird.stop)
        bird.start()
        yield folder, bird, tor
