"""Two peers with one address, on two ports or two links: two BIRDs, the sidecar and the agent's speaker."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.model import Peer
from tests.support.bgp import NODE4, NODE_ASN, TOR4, Sidecar, agent, config, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

Make = Callable[[str], NetworkNamespace]
WAIT = 60.0
ONE, OTHER, BOTH = "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"
"""What we announce."""
FIRST, SECOND = "10.244.7.0/24", "10.244.8.0/24"
"""What each of the two announces."""
SIX = "ipv6 { import all; export all; };"


def bird_config(identifier: str, learned: str, session: str) -> str:
    return f"""
    router id {identifier};
    protocol device {{ }}
    protocol static {{ ipv4; route {learned} blackhole; }}
    protocol bgp node {{
      {session}
      graceful restart on; connect delay time 1; connect retry time 1; error wait time 1, 5;
      ipv4 {{ import all; export where source = RTS_STATIC; extended next hop on; next hop self; }};
    }}
    """


async def test_on_two_ports(tmp_path: Path, tor: NetworkNamespace, sidecar: Sidecar) -> None:
    """Both routers connect as well: nothing tells which of them a connection is from, so ours count."""
    first = Bird(
        tor,
        tmp_path / "first",
        bird_config("10.9.0.2", FIRST, f"local {TOR4} as 65000; neighbor {NODE4} as {NODE_ASN};"),
    )
    second = Bird(
        tor,
        tmp_path / "second",
        bird_config("10.255.0.3", SECOND, f"local {TOR4} port 1180 as 65010; neighbor {NODE4} as {NODE_ASN};"),
    )
    alone = config({"peerIP": TOR4, "asNumber": 65000})
    name = f"{TOR4}:1180"
    wanted = config({"peerIP": TOR4, "asNumber": 65000}, {"peerIP": name, "asNumber": 65010})
    with first, second:
        async with agent(sidecar.run_dir, wanted, announce={ONE}) as node:
            await until(lambda: dict(node.speaker.routes()) == {FIRST: (TOR4,), SECOND: (TOR4,)}, WAIT)
            await until(lambda: first.routes("node") == second.routes("node") == {ONE}, WAIT)
            shown = [(peer.address, peer.asn, peer.received) for peer in node.speaker.peers()]
            assert shown == [(TOR4, 65000, 1), (name, 65010, 1)]
            assert node.speaker.explain(SECOND)[0].peer == name
            assert second.birdc("show", "route", "all", ONE).count(f"BGP.next_hop: {NODE4}") == 1
            assert set(node.speaker.announced()) == {TOR4, name}

            # One that goes does not touch the other.
            before, withdrawn = first.since("node"), first.withdrawals("node")
            second.stop()
            await until(lambda: dict(node.speaker.routes()) == {FIRST: (TOR4,)}, WAIT)
            node.speaker.announce({ONE, OTHER})
            await until(lambda: first.routes("node") == {ONE, OTHER}, WAIT)
            second.start()
            await until(lambda: second.routes("node") == {ONE, OTHER}, WAIT)
            await until(lambda: SECOND in node.speaker.routes(), WAIT)
            assert (first.since("node"), first.withdrawals("node")) == (before, withdrawn)

            # Nor does one that is taken out of the configuration, and comes back.
            node.speaker.set_config(alone)
            await until(lambda: not second.routes("node"), WAIT)
            await until(lambda: dict(node.speaker.routes()) == {FIRST: (TOR4,)}, WAIT)
            node.speaker.set_config(wanted)
            await until(lambda: second.routes("node") == {ONE, OTHER}, WAIT)
            assert (first.since("node"), first.withdrawals("node")) == (before, withdrawn)

            # Both survive ExaBGP.
            os.kill(sidecar.exabgp(), signal.SIGKILL)
            node.speaker.announce({ONE, OTHER, BOTH})
            await until(lambda: first.routes("node") == second.routes("node") == {ONE, OTHER, BOTH}, WAIT)
        before = second.since("node")
        async with agent(sidecar.run_dir, wanted, announce={BOTH}) as node:
            await until(lambda: first.routes("node") == second.routes("node") == {BOTH}, WAIT)
            await until(lambda: dict(node.speaker.routes()) == {FIRST: (TOR4,), SECOND: (TOR4,)}, WAIT)
            assert second.since("node") == before


async def test_on_two_links(tmp_path: Path, make_netns: Make, sidecar: Sidecar) -> None:
    """Unnumbered: every router may be fe80::2 on its link, and so may be the node on both."""
    birds = []
    for index, learned in enumerate((FIRST, SECOND)):
        tor = make_netns(f"tor{index}")
        link(tor, index)
        for command, device, host in ((run, f"tor{index}", 1), (tor.run, "node", 2)):
            command("ip", "address", "flush", "dev", device)
            command("ip", "address", "add", f"fe80::{host}/64", "dev", device, "nodad")
        text = bird_config(
            f"10.255.0.{index}", learned, f"local as 65000; neighbor fe80::1%node as {NODE_ASN}; {SIX}"
        )
        birds.append(Bird(tor, tmp_path / f"bird{index}", text))
    plain = config({"peerIP": "fd09::2", "asNumber": 65000})
    peers = tuple(
        replace(plain.peers[0], address="fe80::2", interface=f"tor{index}", families=(4, 6)) for index in range(2)
    )
    wanted = replace(plain, peers=peers)
    with birds[0], birds[1]:
        hops = {FIRST: ("fe80::2%tor0",), SECOND: ("fe80::2%tor1",)}
        async with agent(sidecar.run_dir, wanted, announce={ONE}) as node:
            await until(lambda: dict(node.speaker.routes()) == hops, WAIT)
            await until(lambda: all(bird.routes("node") == {ONE} for bird in birds), WAIT)
            assert [peer.address for peer in node.speaker.peers()] == [peer.key for peer in peers]
            before = birds[0].since("node")
            birds[1].stop()
            await until(lambda: dict(node.speaker.routes()) == {FIRST: hops[FIRST]}, WAIT)
            assert birds[0].since("node") == before


def test_names_are_the_fields_of_their_peers() -> None:
    peer = Peer(address="fe80::2", interface="tor1", port=1180, asn=1, local_asn=2)
    assert peer.key == "[fe80::2%tor1]:1180"
