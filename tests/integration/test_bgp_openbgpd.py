"""OpenBGPD as the router: both families, MD5, TTL security, communities, route refresh, graceful restart,
two families over one session."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bgp.announcement import Announcement
from bgp.sidecar import SOCKET
from tests.support.bgp import NODE4, NODE6, NODE_ASN, TOR4, TOR6, TOR_ASN, Sidecar, agent, config
from tests.support.isolate import NetworkNamespace
from tests.support.routers import Ask, crash, openbgpd, openbgpd_routes
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6, OTHER6 = "10.244.1.0/24", "fd44:1::/64", "fd44:2::/64"
LEARNED4, LEARNED6 = "10.244.7.0/24", "fd44:7::/64"
ASN = 4200000000
ROUTES = {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}
DRESSED = [
    Announcement(V4, med=7, communities=("65000:100",), large_communities=("65000:1:2",)),
    Announcement(V6),
]


def router(four: str = "", six: str = "", asn: int = TOR_ASN) -> str:
    """``four`` and ``six``: more of the neighbor of each family."""
    return f"""
AS {asn}
router-id {TOR4}
network {LEARNED4} set {{ community 65000:7 large-community 65000:7:7 }}
network {LEARNED6}
neighbor {NODE4} {{
  remote-as {NODE_ASN}
  announce IPv4 unicast
  announce restart yes
  {four}
}}
neighbor {NODE6} {{
  remote-as {NODE_ASN}
  announce IPv6 unicast
  announce restart yes
  {six}
}}
allow from ebgp
allow to ebgp
"""


def shown(ask: Ask, prefix: str) -> dict[str, Any]:
    """What OpenBGPD has of a route from the node."""
    (route,) = json.loads(ask("-j", "show", "rib", "detail", prefix))["rib"]
    found: dict[str, Any] = route
    return found


def updates(ask: Ask, peer: str) -> int:
    """UPDATE messages received."""
    match = re.search(r"^ +Updates +\d+ +(\d+)", ask("show", "neighbor", peer), re.MULTILINE)
    assert match
    return int(match[1])


async def test_routes_attributes_refresh_and_graceful_restart(
    tor: NetworkNamespace, sidecar: Sidecar, tmp_path: Path
) -> None:
    with openbgpd(tor, tmp_path / "tor", router()) as ask:
        async with agent(sidecar.run_dir) as node:
            node.speaker.announce(DRESSED)
            await until(lambda: openbgpd_routes(ask) == {V4: False, V6: False})
            await until(lambda: dict(node.speaker.routes()) == ROUTES)
            (learned,) = node.speaker.explain(LEARNED4)
            assert learned.path.communities == ("65000:7",)
            assert learned.path.large_communities == ("65000:7:7",)
            route = shown(ask, V4)
            assert (route["communities"], route["large_communities"]) == (["65000:100"], ["65000:1:2"])
            assert route["metric"] == 7
            for peer in (NODE4, NODE6):
                before = updates(ask, peer)
                ask("neighbor", peer, "refresh")
                await until(lambda: updates(ask, peer) > before)  # noqa: B023 - the node has told its routes again
            old = sidecar.exabgp()
            os.kill(old, signal.SIGKILL)
            await until(lambda: not node.up())
            assert openbgpd_routes(ask).keys() == {V4, V6}
            await until(lambda: openbgpd_routes(ask) == {V4: False, V6: False} and node.up())
            assert dict(node.speaker.routes()) == ROUTES


async def test_md5_ttl_security_and_peers_removed_and_added(
    tor: NetworkNamespace, sidecar: Sidecar, tmp_path: Path
) -> None:
    peers = (
        {"peerIP": TOR4, "asNumber": ASN, "password": "s3cret"},
        {"peerIP": TOR6, "asNumber": ASN, "ttlSecurity": 1},
    )
    text = router("tcp md5sig password s3cret", "ttl-security yes", ASN)
    with openbgpd(tor, tmp_path / "tor", text) as ask:
        async with agent(sidecar.run_dir, config(*peers), {V4, V6}) as node:
            for wanted, told, routes in (
                (peers, {V4, V6}, ROUTES),
                (peers[:1], {V4}, {LEARNED4: (TOR4,)}),
                (peers, {V4, V6}, ROUTES),
            ):
                node.speaker.set_config(config(*wanted))
                await until(lambda told=told: openbgpd_routes(ask) == dict.fromkeys(told, False), 60)  # type: ignore[misc]
                await until(lambda routes=routes: dict(node.speaker.routes()) == routes, 60)  # type: ignore[misc]


async def test_a_router_that_crashes_is_not_waited_for(
    tor: NetworkNamespace, sidecar: Sidecar, tmp_path: Path
) -> None:
    """Its restart capability promises an end-of-RIB, and of no family that forwarding is kept (RFC 4724, 3)."""
    with ExitStack() as stack:
        ask = stack.enter_context(openbgpd(tor, tmp_path / "tor", router()))
        async with agent(sidecar.run_dir, announce={V4, V6}) as node:
            await until(lambda: dict(node.speaker.routes()) == ROUTES)
            crash(tor)
            await until(lambda: node.speaker.routes() == {})
            ask = stack.enter_context(openbgpd(tor, tmp_path / "tor", router()))
            await until(lambda: dict(node.speaker.routes()) == ROUTES)
            await until(lambda: openbgpd_routes(ask) == {V4: False, V6: False})


async def test_ipv4_by_ipv6_next_hops_is_not_announced(
    tor: NetworkNamespace, sidecar: Sidecar, tmp_path: Path
) -> None:
    """It does not have RFC 8950, and would end the session, as long as that is announced."""
    one = config({"peerIP": TOR6, "asNumber": TOR_ASN})
    both = tuple(replace(peer, families=(4, 6), next_hops=(NODE6,)) for peer in one.peers)
    text = router("announce IPv6 unicast", "announce IPv4 unicast")
    with openbgpd(tor, tmp_path / "tor", text) as ask:
        async with agent(sidecar.run_dir, replace(one, peers=both), {V4, V6}) as node:
            await until(lambda: openbgpd_routes(ask) == {V6: False})
            await until(lambda: node.speaker.in_sync)
            (peer,) = node.speaker.peers()
            assert (peer.established, peer.announced, peer.refused) == (True, 1, 1)
            assert "RFC 8950" in peer.refusal
        # Nor by ExaBGP itself, which may have it of a time when the router was another, and the agent be away.
        _, writer = await asyncio.open_unix_connection(sidecar.run_dir / SOCKET)
        for hop, prefix in ((NODE6, V4), ("self", OTHER6)):
            writer.write(f"neighbor {TOR6} announce attributes next-hop {hop} nlri {prefix}\n".encode())
        await until(lambda: openbgpd_routes(ask) == {V6: False, OTHER6: False})
        writer.close()
        await writer.wait_closed()
        assert "sending notification" not in (tmp_path / "tor" / "daemon.log").read_text()


@pytest.mark.parametrize(("address", "learned"), [(TOR4, LEARNED4), (TOR6, LEARNED6)])
async def test_two_families_over_one_session(
    tor: NetworkNamespace, sidecar: Sidecar, tmp_path: Path, address: str, learned: str
) -> None:
    """It takes both; of the session's other family its next hop is its loopback address, which nobody may use."""
    one = config({"peerIP": address, "asNumber": TOR_ASN})
    both = tuple(replace(peer, families=(4, 6), next_hops=(NODE4, NODE6)) for peer in one.peers)
    text = router("announce IPv6 unicast", "announce IPv4 unicast")
    with openbgpd(tor, tmp_path / "tor", text) as ask:
        async with agent(sidecar.run_dir, replace(one, peers=both), {V4, V6}) as node:
            await until(lambda: openbgpd_routes(ask) == {V4: False, V6: False})
            assert [shown(ask, prefix)["exit_nexthop"] for prefix in (V4, V6)] == [NODE4, NODE6]
            await until(lambda: node.speaker.in_sync)
            assert dict(node.speaker.routes()) == {learned: (address,)}
