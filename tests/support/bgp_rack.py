"""A node's sidecar and a BIRD as its ToR; BIRD calls the sessions of the two families node4 and node6."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.bgp import Sidecar, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace

V4, V6 = "10.244.1.0/24", "fd44:1::/64"
"""What the node announces."""

LEARNED4, LEARNED6 = "10.244.7.0/24", "fd44:7::/64"
"""What the router does."""


@dataclass
class Rack:
    """Both ends. ``folder`` has the files of both."""

    sidecar: Sidecar
    tor: Bird
    tor_netns: NetworkNamespace
    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.sidecar.run_dir

    def announced(self) -> bool:
        return self.tor.routes("node4") == {V4} and self.tor.routes("node6") == {V6}

    def withdrawals(self) -> int:
        return self.tor.withdrawals("node4") + self.tor.withdrawals("node6")


R = TypeVar("R", bound=Rack)


def started(
    kind: type[R], folder: Path, make_netns: Callable[[str], NetworkNamespace], bird_config: str
) -> Iterator[R]:
    """A rack, for a fixture; the test is in a network namespace of its own, which is the node's."""
    tor_netns = make_netns("tor")
    link(tor_netns)
    tor = Bird(tor_netns, folder / "tor", bird_config)
    tor.start()
    sidecar = Sidecar(folder / "run")
    sidecar.start()
    yield kind(sidecar, tor, tor_netns, folder)
    sidecar.stop()
    tor.stop()
