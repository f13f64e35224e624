"""The top-of-rack router: BIRD 2, one session for each node and family, and the way to the network beyond."""

from __future__ import annotations

from tests.cluster.machine import Machine, wait_for
from tests.cluster.plan import (
    CLUSTER_CIDRS,
    LOAD_BALANCERS,
    NODE_ASN,
    NODE_MASKS,
    RACK,
    TOR,
    TOR_ASN,
    Shape,
    address,
)

_CONTROL = "/run/bird/bird.ctl"
_HEAD = """\
log stderr all;
router id {router_id};
protocol device {{ scan time 5; }}
"""

# Pod CIDRs of a node's size and what is inside them, and load balancers, and nothing else, as docs/bgp.md says.
_FAMILY = """
filter pods{family} {{
  if net ~ [ {cidr}{{{shortest},{bits}}}, {balancers}+ ] then accept;
  reject;
}}

protocol kernel kernel{family} {{
  merge paths on;
  ipv{family} {{
    import none;
    export where source = RTS_BGP;
  }};
}}

# A session for whoever in the rack begins one.
protocol bgp nodes{family} {{
  local {own} as {asn};
  neighbor range {rack} as {node_asn};
  passive;
  dynamic name "node_ipv{family}_";
  graceful restart on;
  graceful restart time 120;
  ipv{family} {{
    import filter pods{family};
    export where source = RTS_BGP;
    import limit 1000 action restart;
  }};
}}
"""


class Tor:
    """The router on its machine, which must have been booted."""

    def __init__(self, machine: Machine, shape: Shape) -> None:
        self.machine = machine
        self._shape = shape

    def start(self) -> None:
        """Start BIRD and wait until it answers."""
        families = [
            _FAMILY.format(
                family=family,
                cidr=CLUSTER_CIDRS[family],
                shortest=NODE_MASKS[family],
                bits=32 if family == 4 else 128,
                balancers=LOAD_BALANCERS[family],
                own=address(TOR, family),
                asn=TOR_ASN,
                rack=RACK[family],
                node_asn=NODE_ASN,
            )
            for family in self._shape.families
        ]
        self.machine.write("/etc/bird/bird.conf", _HEAD.format(router_id=address(TOR, 4)) + "".join(families))
        self.machine.start("bird", "bird", "-f", "-c", "/etc/bird/bird.conf", "-s", _CONTROL)
        wait_for("BIRD", lambda: self.birdc("show", "status"), 30)

    def birdc(self, *words: str) -> str:
        """The router's answer to a command."""
        return self.machine.run("birdc", "-s", _CONTROL, *words)
