"""A node's sidecar and a BIRD as its ToR; BIRD calls the sessions of the two families node4 and node6."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.bgp import NODE_ASN, TOR_ASN, Sidecar
from tests.support.bird import Bird, Written
from tests.support.isolate import NetworkNamespace

V4, V6 = "10.244.1.0/24", "fd44:1::/64"
"""What the node announces."""

LEARNED4, LEARNED6 = "10.244.7.0/24", "fd44:7::/64"
"""What the router does."""

TIME = 120.0
"""Seconds for what takes long on a machine that has much to do."""


def bird_config(static4: str = "", *, peer4: str = "", net: int = 9, asn: int = TOR_ASN) -> str:
    return f"""
    router id 10.{net}.0.2;
    protocol device {{ }}
    protocol static s4 {{ ipv4; route {LEARNED4} blackhole; {static4} }}
    protocol static s6 {{ ipv6; route {LEARNED6} blackhole; }}
    template bgp node {{ local as {asn}; graceful restart on; graceful restart time 20; connect delay time 1; }}
    protocol bgp node4 from node {{
      neighbor 10.{net}.0.1 as {NODE_ASN}; {peer4}
      ipv4 {{ import all; export where proto = "s4"; next hop self; }};
    }}
    protocol bgp node6 from node {{
      neighbor fd{net:02}::1 as {NODE_ASN};
      ipv6 {{ import all; export where proto = "s6"; next hop self; }};
    }}
    """


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

    def table(self) -> Written:
        """BIRD's routes from us, with the time each was last written."""
        return self.tor.written("node4", "node6")

    def announced(self) -> bool:
        return self.tor.routes("node4") == {V4} and self.tor.routes("node6") == {V6}

    def withdrawals(self) -> int:
        return self.tor.withdrawals("node4") + self.tor.withdrawals("node6")
