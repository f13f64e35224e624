"""The top-of-rack router's BIRD 2 configuration."""

from __future__ import annotations

from collections.abc import Sequence

from lab.topology import CLUSTER_CIDRS, ROUTER_ID, TOR_ASN, Node
from policy.model import Family

# A rack's routers take from a server what it may announce and nothing else: pod CIDRs of a node's size, and what
# is inside them.
_SHORTEST = {Family.V4: 24, Family.V6: 64}

_HEAD = """\
log stderr all;
timeformat log iso long ms;
debug protocols {{ states, events, packets }};
router id {router_id};
watchdog warning 5 s;

protocol device {{
  scan time 10;
}}

template bgp node {{
  local as {asn};
  hold time 90;
  connect delay time 1;
  connect retry time 1;
  error wait time 1, 5;
  graceful restart on;
  graceful restart time 120;
}}
"""

_FAMILY = """
filter pods{version} {{
  if net ~ [ {cidr}{{{shortest},{bits}}} ] then accept;
  reject;
}}

protocol kernel kernel{version} {{
  merge paths on limit 16;
  ipv{version} {{
    import none;
    export where source = RTS_BGP;
  }};
}}
"""

_SESSION = """
protocol bgp {name}_ipv{version} from node {{
  neighbor {address} as {asn};
  source address {source};
  ipv{version} {{
    import filter pods{version};
    export where source = RTS_BGP;
    next hop self;
    import limit 1000 action restart;
  }};
}}
"""


def bird_config(nodes: Sequence[Node]) -> str:
    """One eBGP session for each node and family; what is learned goes to the kernel (ECMP) and to the others."""
    parts = [_HEAD.format(router_id=ROUTER_ID, asn=TOR_ASN)]
    for family in nodes[0].families:
        version, cidr = int(family), CLUSTER_CIDRS[family]
        parts.append(_FAMILY.format(version=version, cidr=cidr, shortest=_SHORTEST[family], bits=family.bits))
        parts += [
            _SESSION.format(
                name=node.name,
                version=version,
                address=node.addresses[family],
                source=node.gateways[family],
                asn=node.asn,
            )
            for node in nodes
        ]
    return "".join(parts)
