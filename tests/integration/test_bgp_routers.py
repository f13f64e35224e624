"""What a route carries, route refresh and ECMP: two routers of a kind each time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bgp.announcement import Announcement
from tests.support import routers
from tests.support.bgp import NODE_ASN, TOR_ASN, Sidecar, agent, config, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

WAIT = 60.0
OURS, LEARNED = "10.244.1.0/24", "10.244.7.0/24"
ANNOUNCED = Announcement(OURS, communities=("65000:100",), large_communities=("65000:1:2",))


@dataclass(frozen=True)
class Router:
    """One that runs. ``carried``: the communities on our route there; ``updates``: how many it has received."""

    carried: Callable[[], set[str]]
    updates: Callable[[], int]
    refresh: Callable[[], object] | None
    """Have it ask for all routes again; None: it cannot (GoBGP's soft reset looks at what it has)."""


Start = Callable[[NetworkNamespace, Path, int], AbstractContextManager[Router]]


def ends(index: int) -> tuple[str, str]:
    """Addresses of the node and of a router on their link."""
    return f"10.{9 + index}.0.1", f"10.{9 + index}.0.2"


@contextmanager
def bird(namespace: NetworkNamespace, folder: Path, index: int) -> Iterator[Router]:
    node, own = ends(index)
    text = f"""
router id {own};
protocol device {{ }}
protocol static s4 {{ ipv4; route {LEARNED} blackhole {{
  bgp_community.add((65000, 7)); bgp_large_community.add((65000, 7, 7));
}}; }}
protocol bgp node {{
  local as {TOR_ASN}; neighbor {node} as {NODE_ASN}; connect delay time 1; error wait time 1, 5;
  ipv4 {{ import all; export where proto = "s4"; next hop self; }};
}}
"""
    router = Bird(namespace, folder, text)

    def carried() -> set[str]:
        shown = router.birdc("show", "route", "all", OURS)
        return {found.replace(", ", ":").replace(",", ":") for found in re.findall(r"\((\d+,[\d, ]+)\)", shown)}

    def updates() -> int:
        return int(re.findall(r"Import updates: +(\d+)", router.birdc("show", "protocols", "all", "node"))[0])

    with router:
        yield Router(carried, updates, lambda: router.birdc("reload", "in", "node"))


@contextmanager
def frr(namespace: NetworkNamespace, folder: Path, index: int) -> Iterator[Router]:
    node, own = ends(index)
    text = f"""
route-map dress permit 10
 set community 65000:7
 set large-community 65000:7:7
router bgp {TOR_ASN}
 bgp router-id {own}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {node} remote-as {NODE_ASN}
 neighbor {node} timers connect 1
 address-family ipv4 unicast
  network {LEARNED} route-map dress
"""
    with routers.frr(namespace, folder, text) as ask:

        def carried() -> set[str]:
            found = json.loads(ask("show bgp ipv4 unicast", OURS, "json") or "{}")
            kinds = ("community", "largeCommunity")
            shown = [path.get(kind, {}).get("string", "") for path in found.get("paths", []) for kind in kinds]
            return set(" ".join(shown).split())

        def updates() -> int:
            found = json.loads(ask("show bgp neighbors", node, "json") or "{}")
            return int(found.get(node, {}).get("messageStats", {}).get("updatesRecv", 0))

        yield Router(carried, updates, lambda: ask("clear bgp", node, "soft in"))


@contextmanager
def gobgp(namespace: NetworkNamespace, folder: Path, index: int) -> Iterator[Router]:
    node, own = ends(index)
    text = f"""
[global.config]
  as = {TOR_ASN}
  router-id = "{own}"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{node}"
    peer-as = {NODE_ASN}
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
"""
    with routers.gobgp(namespace, folder, text) as ask:
        ask("global", "rib", "add", LEARNED, "community", "65000:7", "large-community", "65000:7:7")

        def carried() -> set[str]:
            return set(re.findall(r"\b65\d{3}(?::\d+)+", ask("global", "rib", OURS)))

        def updates() -> int:
            found = json.loads(ask("neighbor", node, "-j"))
            return int(found["state"]["messages"]["received"].get("update", 0))

        yield Router(carried, updates, None)


@contextmanager
def openbgpd(namespace: NetworkNamespace, folder: Path, index: int) -> Iterator[Router]:
    node, own = ends(index)
    text = f"""
AS {TOR_ASN}
router-id {own}
network {LEARNED} set {{ community 65000:7 large-community 65000:7:7 }}
neighbor {node} {{
  remote-as {NODE_ASN}
}}
allow from ebgp
allow to ebgp
"""
    with routers.openbgpd(namespace, folder, text) as ask:

        def received(what: str) -> int:
            match = re.search(rf"^ +{what} +\d+ +(\d+)", ask("show", "neighbor", node), re.MULTILINE)
            return int(match[1]) if match else 0

        def carried() -> set[str]:
            kinds = ("communities", "large_communities")
            found = json.loads(ask("-j", "show", "rib", "detail", OURS) or "{}").get("rib", [])
            # The end-of-RIB counts as an update, and comes after the routes.
            found = found if received("End-of-Rib") else []
            return {each for route in found for kind in kinds for each in route.get(kind, [])}

        def updates() -> int:
            return received("Updates")

        yield Router(carried, updates, lambda: ask("neighbor", node, "refresh"))


@pytest.mark.parametrize("kind", [bird, frr, gobgp, openbgpd])
async def test_communities_refresh_and_ecmp(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], sidecar: Sidecar, kind: Start
) -> None:
    wanted = config(*({"peerIP": ends(index)[1], "asNumber": TOR_ASN} for index in (0, 1)))
    hops = {LEARNED: tuple(sorted(ends(index)[1] for index in (0, 1)))}
    dressed = {"65000:100", "65000:1:2"}
    with ExitStack() as stack:
        both: list[Router] = []
        for index in (0, 1):
            namespace = make_netns(f"tor{index}")
            link(namespace, index)
            both.append(stack.enter_context(kind(namespace, tmp_path / f"tor{index}", index)))
        async with agent(sidecar.run_dir, wanted) as node:
            node.speaker.announce([ANNOUNCED])
            await until(lambda: dict(node.speaker.routes()) == hops, WAIT)
            await until(lambda: all(router.carried() == dressed for router in both), WAIT, 0.2)
            for one in node.speaker.explain(LEARNED):
                assert one.path.communities == ("65000:7",)
                assert one.path.large_communities == ("65000:7:7",)
            if refresh := both[0].refresh:
                before = [router.updates() for router in both]
                refresh()
                await until(lambda: both[0].updates() > before[0], WAIT, 0.2)
                assert both[1].updates() == before[1]
                assert all(router.carried() == dressed for router in both)
            assert node.up()
