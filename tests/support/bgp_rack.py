"""A node's sidecar and a BIRD as its ToR; BIRD calls the sessions of the two families node4 and node6."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.bgp import Sidecar
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
