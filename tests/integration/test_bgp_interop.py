"""The same against FRR and GoBGP: routes both ways, and a killed ExaBGP is not missed (graceful restart)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import routers
from tests.support.bgp import NODE4, NODE6, NODE_ASN, TOR4, TOR6, TOR_ASN, Sidecar, agent
from tests.support.isolate import NetworkNamespace
from tests.support.routers import Ask, crash, frr_routes, gobgp_routes
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

WAIT = 60.0
V4, V6 = "10.244.1.0/24", "fd44:1::/64"
LEARNED4, LEARNED6 = "10.244.7.0/24", "fd44:7::/64"
FORMER4 = "10.244.8.0/24"
Start = Callable[..., AbstractContextManager[Ask]]
"""Starts a router in a namespace, files in a folder; third: its IPv4 prefixes."""


@contextmanager
def frr(namespace: NetworkNamespace, folder: Path, learned4: Sequence[str] = (LEARNED4,)) -> Iterator[Ask]:
    networks = "\n".join(f"  network {prefix}" for prefix in learned4)
    config = f"""
router bgp {TOR_ASN}
 bgp router-id {TOR4}
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 neighbor {NODE4} remote-as {NODE_ASN}
 neighbor {NODE4} timers connect 1
 neighbor {NODE6} remote-as {NODE_ASN}
 neighbor {NODE6} timers connect 1
 address-family ipv4 unicast
{networks}
  no neighbor {NODE6} activate
 address-family ipv6 unicast
  network {LEARNED6}
  neighbor {NODE6} activate
"""
    with routers.frr(namespace, folder, config) as ask:
        yield ask


@contextmanager
def gobgp(namespace: NetworkNamespace, folder: Path, learned4: Sequence[str] = (LEARNED4,)) -> Iterator[Ask]:
    neighbors = "".join(
        f"""
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{address}"
    peer-as = {NODE_ASN}
    admin-down = true
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
  [neighbors.graceful-restart.config]
    enabled = true
    restart-time = 20
  [[neighbors.afi-safis]]
    [neighbors.afi-safis.config]
      afi-safi-name = "{family}-unicast"
    [neighbors.afi-safis.mp-graceful-restart.config]
      enabled = true
"""
        for address, family in ((NODE4, "ipv4"), (NODE6, "ipv6"))
    )
    config = f'[global.config]\n  as = {TOR_ASN}\n  router-id = "{TOR4}"\n{neighbors}'
    # With -r it says that it has been restarted and that its forwarding state was kept (RFC 4724, 3).
    with routers.gobgp(namespace, folder, config, "-r") as ask:
        for prefix in learned4:
            ask("global", "rib", "add", prefix)
        ask("global", "rib", "add", "-a", "ipv6", LEARNED6, "nexthop", TOR6)
        for address in (NODE4, NODE6):
            ask("neighbor", address, "enable")
        yield ask


@pytest.mark.parametrize(("router", "routes"), [(frr, frr_routes), (gobgp, gobgp_routes)], ids=["frr", "gobgp"])
async def test_routes_both_ways_and_graceful_restart(
    tmp_path: Path,
    tor: NetworkNamespace,
    sidecar: Sidecar,
    router: Start,
    routes: Callable[[Ask], dict[str, bool]],
) -> None:
    fresh = {V4: False, V6: False}
    with router(tor, tmp_path / "tor") as ask:
        async with agent(sidecar.run_dir, announce={V4, V6}) as node:
            await until(lambda: routes(ask) == fresh, 30)
            await until(lambda: dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}, 30)
        async with agent(sidecar.run_dir, announce={V4, V6}) as node:
            await until(lambda: dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)})
            old = sidecar.exabgp()
            os.kill(old, signal.SIGKILL)
            await until(lambda: not node.up())
            assert routes(ask).keys() == fresh.keys()
            await until(lambda: routes(ask) == fresh and node.up(), 30)
            assert dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}


@pytest.mark.parametrize(("router", "routes"), [(frr, frr_routes), (gobgp, gobgp_routes)], ids=["frr", "gobgp"])
async def test_a_router_crashes_and_what_it_still_has_stays(
    tmp_path: Path,
    tor: NetworkNamespace,
    sidecar: Sidecar,
    router: Start,
    routes: Callable[[Ask], dict[str, bool]],
) -> None:
    """What it had and has no more goes at its end-of-RIB; nothing else is touched."""
    fresh, learned = {V4: False, V6: False}, {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}
    with ExitStack() as stack:
        ask = stack.enter_context(router(tor, tmp_path / "tor", (LEARNED4, FORMER4)))
        async with agent(sidecar.run_dir, announce={V4, V6}) as node:
            both_ways = learned | {FORMER4: (TOR4,)}
            await until(lambda: dict(node.speaker.routes()) == both_ways, WAIT)
            await until(lambda: routes(ask) == fresh, WAIT, 0.2)
            node.changes.clear()
            crash(tor)
            await until(lambda: not any(peer.established for peer in node.speaker.peers()), WAIT)
            assert dict(node.speaker.routes()) == both_ways
            ask = stack.enter_context(router(tor, tmp_path / "tor", (LEARNED4,)))
            await until(lambda: dict(node.speaker.routes()) == learned, WAIT)
            await until(lambda: node.up() and routes(ask) == fresh, WAIT, 0.2)
            assert node.changes == [{FORMER4: ()}]
