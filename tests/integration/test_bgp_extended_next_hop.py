"""IPv4 prefixes by IPv6 next hops (RFC 8950) only where the router agrees on them: BIRD and FRR with and without.

`test_bgp_openbgpd.py` has a router that does not know of it, `test_bgp_topologies_interop.py` what is agreed on.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.model import SpeakerConfig
from tests.support import raw_bgp as raw
from tests.support import routers
from tests.support.bgp import NODE6, NODE_ASN, TOR4, TOR6, TOR_ASN, Sidecar, agent, config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace
from tests.support.raw_bgp import RawPeer
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = "10.244.1.0/24", "fd44:1::/64"
LEARNED6 = "fd44:7::/64"
Routes = Callable[[], set[str]]
"""Prefixes that the router has of the node."""


def speaker(*families: int) -> SpeakerConfig:
    """One session over IPv6, of a node that has no IPv4 address."""
    one = config({"peerIP": TOR6, "asNumber": TOR_ASN})
    return replace(one, peers=tuple(replace(p, families=families, next_hops=(NODE6,)) for p in one.peers))


@contextmanager
def bird(namespace: NetworkNamespace, folder: Path, extended: bool) -> Iterator[Routes]:
    with_or_without = "on" if extended else "off"
    text = f"""
router id {TOR4};
protocol device {{ }}
protocol static {{ ipv6; route {LEARNED6} blackhole; }}
protocol bgp node {{
  local as {TOR_ASN}; neighbor {NODE6} as {NODE_ASN};
  graceful restart on; connect delay time 1; error wait time 1, 5;
  ipv4 {{ import all; export all; extended next hop {with_or_without}; next hop self; }};
  ipv6 {{ import all; export all; }};
}}
"""
    with Bird(namespace, folder / "bird", text) as router:
        yield lambda: router.routes("node")


@contextmanager
def frr(namespace: NetworkNamespace, folder: Path, extended: bool) -> Iterator[Routes]:
    text = f"""
router bgp {TOR_ASN}
 bgp router-id {TOR4}
 no bgp ebgp-requires-policy
 no bgp network import-check
 bgp graceful-restart
 neighbor {NODE6} remote-as {NODE_ASN}
 neighbor {NODE6} timers connect 1
 {"" if extended else "no "}neighbor {NODE6} capability extended-nexthop
 address-family ipv4 unicast
  neighbor {NODE6} activate
 address-family ipv6 unicast
  network {LEARNED6}
  neighbor {NODE6} activate
"""
    with routers.frr(namespace, folder, text) as ask:
        yield lambda: set(routers.frr_routes(ask))


Router = Callable[[NetworkNamespace, Path, bool], AbstractContextManager[Routes]]


@pytest.mark.parametrize("router", [bird, frr], ids=["bird", "frr"])
async def test_a_router_without_it_and_then_with_it(
    tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar, router: Router
) -> None:
    """The session stays and IPv6 goes on, also with another agent and bridge; then the router agrees."""
    with router(tor, tmp_path, False) as routes:
        async with agent(sidecar.run_dir, speaker(4, 6), {V4, V6}) as node:
            await until(lambda: routes() == {V6} and node.speaker.in_sync)
            (peer,) = node.speaker.peers()
            assert (peer.established, peer.announced, peer.refused) == (True, 1, 1)
            assert node.speaker.refused()[TOR6].keys() == {V4}
        # The bridge takes the router's OPEN along: a new agent asks ExaBGP what was agreed on.
        _, _, bridge = sidecar.pids()
        os.kill(bridge, signal.SIGKILL)
        async with agent(sidecar.run_dir, speaker(4, 6), {V4, V6}) as node:
            await until(lambda: node.up() and node.speaker.in_sync and node.speaker.peers()[0].refused)
            assert routes() == {V6}
            assert "IPv6 next hops" in node.speaker.peers()[0].refusal
    with router(tor, tmp_path, True) as routes:
        async with agent(sidecar.run_dir, speaker(4, 6), {V4, V6}) as node:
            await until(lambda: routes() == {V4, V6})
            assert not node.speaker.peers()[0].refused
    # While no agent is there, ExaBGP itself keeps back what the router does not agree on any more.
    with router(tor, tmp_path, False) as routes:
        await until(lambda: routes() == {V6})
    assert "notification received" not in sidecar.log


async def test_ipv4_alone_on_an_ipv6_session(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> None:
    with bird(tor, tmp_path, True) as routes:
        async with agent(sidecar.run_dir, speaker(4), {V4, V6}):
            await until(lambda: routes() == {V4})


HOP = bytes.fromhex("fd090000000000000000000000000002")
BY_IPV6 = b"\0\1\1\x10" + HOP + b"\0" + raw.nlri("10.244.7.0/24")
"""MP_REACH_NLRI (RFC 4760, 3; RFC 8950, 3): an IPv4 prefix and its IPv6 next hop."""


async def test_ipv4_by_ipv6_next_hops_of_a_router_that_has_not_agreed(
    tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar
) -> None:
    """A next hop of another length than expected ends the session (RFC 7606, 7.11)."""
    path = raw.attribute(raw.WELL_KNOWN, raw.AS_PATH, b"\2\1" + TOR_ASN.to_bytes(4, "big"))
    origin, reach = raw.attribute(raw.WELL_KNOWN, raw.ORIGIN, b"\0"), raw.attribute(raw.OPTIONAL, 14, BY_IPV6)
    with RawPeer(tor, TOR4, TOR_ASN) as peer:
        async with agent(sidecar.run_dir, config({"peerIP": TOR4, "asNumber": TOR_ASN})) as node:
            session = await asyncio.to_thread(peer.establish)
            session.send(raw.update(origin + path + reach), raw.END_OF_RIB)
            assert await asyncio.to_thread(session.ended) == (3, 9)
            await until(lambda: node.speaker.peers()[0].error.startswith("notification sent 3/9"))
            assert node.speaker.routes() == {}
