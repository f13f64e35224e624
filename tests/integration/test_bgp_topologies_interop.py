"""What sessions can be, against each router: two families on one, IPv4 by IPv6 next hops, MD5, TTL security, a
4-byte AS number. One life of a router for all of it; `test_bgp_topologies.py` has what only BIRD has."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bgp.model import SpeakerConfig
from bgp.resources import BGPConfiguration, BGPNode, BGPPeer, SecretKey
from bgp.topology import topology
from tests.support import routers
from tests.support.bgp import NODE4, NODE6, TOR4, TOR6, Sidecar, agent, unnumbered
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

WAIT = 60.0
ASN = 4200000000
V4, V6 = "10.244.1.0/24", "fd44:1::/64"
LEARNED4, LEARNED6 = "10.244.7.0/24", "fd44:7::/64"
SECRET, PASSWORD = SecretKey("bgp", "tor"), "s3cret"
NextHops = Callable[[], dict[str, set[str]]]
"""What the router has of the node: prefix -> next hops."""


@contextmanager
def bird(namespace: NetworkNamespace, folder: Path) -> Iterator[NextHops]:
    config = f"""
router id {TOR4};
protocol device {{ }}
protocol static s4 {{ ipv4; route {LEARNED4} blackhole; }}
protocol static s6 {{ ipv6; route {LEARNED6} blackhole; }}
template bgp node {{ local as {ASN}; graceful restart on; connect delay time 1; error wait time 1, 5; }}
protocol bgp six from node {{
  neighbor {NODE6} as 65001;
  ipv4 {{ import all; export all; extended next hop on; next hop self; }};
  ipv6 {{ import all; export all; }};
}}
protocol bgp four from node {{
  neighbor {NODE4} as 65001;
  password "{PASSWORD}";
  ttl security on;
  ipv4 {{ import all; export all; next hop self; }};
  ipv6 {{ import all; export all; next hop address {TOR6}; }};
}}
"""
    router = Bird(namespace, folder / "bird", config)

    def next_hops() -> dict[str, set[str]]:
        shown = router.birdc("show", "route", "all", "where source = RTS_BGP")
        found: dict[str, set[str]] = {}
        prefix = ""
        for line in shown.splitlines():
            if "/" in line.split(" ")[0]:
                prefix = line.split()[0]
            elif "BGP.next_hop:" in line:
                found.setdefault(prefix, set()).add(line.split()[1])
        return found

    with router:
        yield next_hops


@contextmanager
def frr(namespace: NetworkNamespace, folder: Path) -> Iterator[NextHops]:
    config = f"""
route-map six permit 10
 set ipv6 next-hop global {TOR6}
router bgp {ASN}
 bgp router-id {TOR4}
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 neighbor {NODE6} remote-as 65001
 neighbor {NODE6} timers connect 1
 neighbor {NODE6} capability extended-nexthop
 neighbor {NODE4} remote-as 65001
 neighbor {NODE4} timers connect 1
 neighbor {NODE4} password {PASSWORD}
 neighbor {NODE4} ttl-security hops 1
 address-family ipv4 unicast
  network {LEARNED4}
  neighbor {NODE6} activate
 address-family ipv6 unicast
  network {LEARNED6}
  neighbor {NODE6} activate
  neighbor {NODE4} activate
  neighbor {NODE4} route-map six out
"""
    with routers.frr(namespace, folder, config) as ask:
        yield lambda: frr_next_hops(ask)


@contextmanager
def frr_unnumbered(namespace: NetworkNamespace, _folder: Path) -> Iterator[NextHops]:
    config = f"""
router bgp {ASN}
 bgp router-id {TOR4}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor fe80::1 remote-as 65001
 neighbor fe80::1 interface node
 neighbor fe80::1 timers connect 1
 neighbor fe80::1 capability extended-nexthop
 address-family ipv4 unicast
  network {LEARNED4}
 address-family ipv6 unicast
  network {LEARNED6}
  neighbor fe80::1 activate
"""
    with routers.frr_with_interfaces(namespace, config) as ask:
        yield lambda: frr_next_hops(ask)


def frr_next_hops(ask: routers.Ask) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for family in ("ipv4", "ipv6"):
        answer = json.loads(ask("show bgp", family, "unicast json") or "{}")
        for prefix, paths in answer.get("routes", {}).items():
            hops = {hop["ip"] for path in paths if path.get("path") == "65001" for hop in path["nexthops"]}
            if hops:
                found[prefix] = hops
    return found


@contextmanager
def gobgp(namespace: NetworkNamespace, folder: Path) -> Iterator[NextHops]:
    secure = "[neighbors.ttl-security.config]\n    enabled = true\n    ttl-min = 255"
    six = gobgp_neighbor(NODE6, "ipv4", "ipv6")
    four = gobgp_neighbor(NODE4, "ipv4", "ipv6", config=f'auth-password = "{PASSWORD}"', more=secure)
    with routers.gobgp(namespace, folder, GOBGP + six + four) as ask:
        yield gobgp_with_routes(ask, TOR6)


@contextmanager
def gobgp_unnumbered(namespace: NetworkNamespace, folder: Path) -> Iterator[NextHops]:
    with routers.gobgp(namespace, folder, GOBGP + gobgp_neighbor("fe80::1%node", "ipv4", "ipv6")) as ask:
        yield gobgp_with_routes(ask, "fe80::2")


GOBGP = f'[global.config]\n  as = {ASN}\n  router-id = "{TOR4}"\n'


def gobgp_neighbor(address: str, *families: str, config: str = "", more: str = "") -> str:
    carried = "".join(
        f"""
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{family}-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
"""
        for family in families
    )
    return f"""
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = 65001
    {config}
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 60
  {more}
  {carried}
"""


def gobgp_with_routes(ask: routers.Ask, next_hop: str) -> NextHops:
    ask("global", "rib", "add", LEARNED4)
    ask("global", "rib", "add", "-a", "ipv6", LEARNED6, "nexthop", next_hop)

    def next_hops() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for family in ("ipv4", "ipv6"):
            answer = ask("global", "rib", "-a", family, "-j")
            for prefix, paths in json.loads(answer if answer.startswith("{") else "{}").items():
                if prefix not in (LEARNED4, LEARNED6):
                    found[prefix] = {a["nexthop"] for path in paths for a in path["attrs"] if "nexthop" in a}
        return found

    return next_hops


def speaker(addresses: tuple[str, ...], *peers: BGPPeer) -> SpeakerConfig:
    node = BGPNode(name="node", addresses=addresses, router_id=NODE4)
    default = BGPConfiguration(name="default", as_number=65001, node_to_node_mesh_enabled=False)
    found = topology("node", [node], [default], peers, [], {SECRET: PASSWORD})
    assert found.speaker is not None
    assert found.problems == ()
    return found.speaker


ONE_SESSION = BGPPeer(name="six", peer_ip=TOR6, as_number=ASN, families=(4, 6))
SECURED = BGPPeer(name="four", peer_ip=TOR4, as_number=ASN, families=(4, 6), password=SECRET, ttl_security=1)


@pytest.mark.parametrize("router", [bird, frr, gobgp], ids=["bird", "frr", "gobgp"])
async def test_sessions(
    tmp_path: Path,
    tor: NetworkNamespace,
    sidecar: Sidecar,
    router: Callable[[NetworkNamespace, Path], AbstractContextManager[NextHops]],
) -> None:
    with router(tor, tmp_path) as next_hops:
        both = speaker((NODE4, NODE6), ONE_SESSION)
        async with agent(sidecar.run_dir, both, announce={V4, V6}) as node:
            await until(lambda: next_hops() == {V4: {NODE4}, V6: {NODE6}}, WAIT, 0.2)
            await until(lambda: node.speaker.routes().keys() == {LEARNED4, LEARNED6}, WAIT)
            assert node.speaker.routes()[LEARNED6] == (TOR6,)
            assert node.speaker.routes()[LEARNED4] in ((TOR4,), (TOR6,)), "as the router likes"
            # IPv4 by an IPv6 next hop, over the same session.
            node.speaker.set_config(speaker((NODE6,), ONE_SESSION))
            await until(lambda: next_hops() == {V4: {NODE6}, V6: {NODE6}}, WAIT, 0.2)
            assert node.up()
            os.kill(sidecar.exabgp(), signal.SIGKILL)
            await until(lambda: not node.up(), WAIT)
            assert next_hops().keys() == {V4, V6}
            by_ipv6 = {LEARNED4: (TOR6,), LEARNED6: (TOR6,)}
            await until(lambda: node.up() and dict(node.speaker.routes()) == by_ipv6, WAIT)
            assert next_hops() == {V4: {NODE6}, V6: {NODE6}}
            node.speaker.set_config(speaker((NODE4, NODE6), SECURED))
            await until(lambda: next_hops() == {V4: {NODE4}, V6: {NODE6}}, WAIT, 0.2)
            await until(lambda: dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}, WAIT)


@pytest.mark.parametrize("router", [frr_unnumbered, gobgp_unnumbered], ids=["frr", "gobgp"])
async def test_unnumbered(
    tmp_path: Path,
    tor: NetworkNamespace,
    sidecar: Sidecar,
    router: Callable[[NetworkNamespace, Path], AbstractContextManager[NextHops]],
) -> None:
    unnumbered(tor)
    peer = BGPPeer(name="tor", peer_ip="fe80::2", interface="tor0", as_number=ASN, families=(4, 6))
    with router(tor, tmp_path) as next_hops:
        async with agent(sidecar.run_dir, speaker((NODE4, NODE6), peer), announce={V4, V6}) as node:
            await until(lambda: next_hops() == {V4: {"fe80::1"}, V6: {"fe80::1"}}, WAIT, 0.2)
            learned = {LEARNED4: ("fe80::2%tor0",), LEARNED6: ("fe80::2%tor0",)}
            await until(lambda: dict(node.speaker.routes()) == learned, WAIT)
