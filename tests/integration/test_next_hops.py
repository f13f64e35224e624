"""A node with two uplinks and real BIRDs: only next hops that work are written, and flows follow the links."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from felix_py.agent.bgp import Bgp
from felix_py.config import AgentConfig
from felix_py.dataplane.link_watch import LinkWatch
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Backend, NodeRecord
from policy.model import Family, Protocol
from tests.support.bgp import NODE_ASN, TOR_ASN, Sidecar, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.services import Objects
from tests.support.traffic import serve
from tests.support.waiting import until
from tests.support.watched import WatchedNode

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

FAR4, FAR6 = "10.244.7.0/24", "fd44:7::/64"
FAR_POD = "10.244.7.1"
SOURCES = [f"10.99.0.{number}" for number in range(1, 17)]
"""Addresses of the node: the kernel chooses among next hops by source and destination."""

PORT = 4242


def bird_config(index: int, *, routes: str = "", hops: str = "") -> str:
    """``routes``: of more static routes; ``hops``: of the IPv4 export filter."""
    net = 10 + index
    return f"""
    router id 10.{net}.0.2;
    protocol device {{ }}
    protocol static s4 {{ ipv4; route {FAR4} blackhole; {routes} }}
    protocol static s6 {{ ipv6; route {FAR6} blackhole; }}
    filter out4 {{ if proto != "s4" then reject; {hops} accept; }}
    template bgp node {{
      local as {TOR_ASN + 100 * index}; hold time 90; connect delay time 1;
      graceful restart on; graceful restart time 60;
    }}
    protocol bgp node4 from node {{
      neighbor 10.{net}.0.1 as {NODE_ASN}; ipv4 {{ import all; export filter out4; }};
    }}
    protocol bgp node6 from node {{
      neighbor fd{net:02}::1 as {NODE_ASN}; ipv6 {{ import all; export where proto = "s6"; next hop self; }};
    }}
    """


@dataclass
class Place:
    """The node is the current namespace; ``tors`` are one hop away, ``far`` is behind both."""

    tors: list[NetworkNamespace]
    birds: list[Bird]
    far: NetworkNamespace
    folder: Path

    def carrier(self, index: int, state: str) -> None:
        """The far end of an uplink goes down or up."""
        self.tors[index].run("ip", "link", "set", "node", state)

    def forwarded(self, index: int) -> int:
        """Packets that a router has sent on to the far pod."""
        (far,) = json.loads(self.tors[index].run("ip", "-j", "-s", "link", "show", "dev", "far"))
        return int(far["stats64"]["tx"]["packets"])


@pytest.fixture
def place(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Place]:
    far = make_netns("far")
    far.run("ip", "address", "add", f"{FAR_POD}/32", "dev", "lo")
    tors: list[NetworkNamespace] = []
    birds: list[Bird] = []
    for address in SOURCES:
        run("ip", "address", "add", f"{address}/32", "dev", "lo")
    for index in (0, 1):
        tor = make_netns(f"tor{index}")
        link(tor, index + 1)
        tor.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        tor.run("ip", "link", "add", "far", "type", "veth", "peer", "name", f"tor{index}", "netns", far.name)
        for command, device, host in ((tor.run, "far", 1), (far.run, f"tor{index}", 2)):
            command("ip", "address", "add", f"10.2{index}.0.{host}/24", "dev", device)
            command("ip", "link", "set", device, "up")
        tor.run("ip", "route", "add", FAR4, "via", f"10.2{index}.0.2")
        tor.run("ip", "route", "add", "10.99.0.0/24", "via", f"10.{10 + index}.0.1")
        tors.append(tor)
        birds.append(Bird(tor, tmp_path / f"bird{index}", bird_config(index)))
    # What is under test are the flows to the far pod; its answers come by the link that stays.
    far.run("ip", "route", "add", "10.99.0.0/24", "via", "10.21.0.1")
    for bird in birds:
        bird.start()
    yield Place(tors, birds, far, tmp_path)
    for bird in birds:
        bird.stop()


@dataclass
class Rig:
    node: WatchedNode
    bgp: Bgp
    notices: Notices

    def hops(self, prefix: str) -> set[str]:
        """Gateways of a route of ours in the kernel, and nothing that does not carry."""
        text = run("ip", "-6" if ":" in prefix else "-4", "route", "show", prefix, "proto", "89")
        words = text.split()
        return {words[number + 1] for number, word in enumerate(words) if word == "via"}

    def said(self) -> dict[str, str]:
        return {
            notice.subject: notice.text for notice in self.notices.all() if notice.kind is NoticeKind.NEXT_HOP
        }


@contextlib.asynccontextmanager
async def agent(place: Place) -> AsyncIterator[Rig]:
    file = place.folder / "bgp.yaml"
    peers = "".join(
        f"  - {{peerIP: '{address}', asNumber: {TOR_ASN + 100 * index}}}\n"
        for index in (0, 1)
        for address in (f"10.{10 + index}.0.2", f"fd{10 + index:02}::2")
    )
    file.write_text(f"asNumber: {NODE_ASN}\nrouterID: 10.10.0.1\npeers:\n{peers}")
    sidecar = Sidecar(place.folder / "run" / "bgp")
    sidecar.start()
    try:
        async with WatchedNode(Backend.NFT) as node:
            node.facts.upsert(NodeRecord("n2", "", ("192.0.2.9",), ("10.244.0.0/16", "fd44::/16")))
            notices = Notices(node.metrics)
            config = AgentConfig(node_name="n1", run_dir=place.folder / "run", bgp_config=file)
            bgp = Bgp(config, node.facts, tuple(Family), notices, node.metrics, Objects())
            watch = LinkWatch(tuple(Family), bgp.on_links)
            tasks = [asyncio.create_task(work) for work in (watch.run(), bgp.run())]
            try:
                yield Rig(node, bgp, notices)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        sidecar.stop()


def answered() -> set[str]:
    """Of which of the node's addresses the far pod answers a datagram, all sent at once."""
    found: set[str] = set()
    with contextlib.ExitStack() as stack:
        probes = {}
        for source in SOURCES:
            probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            probe.bind((source, 0))
            probe.settimeout(0.5)
            probes[source] = probe
            with contextlib.suppress(OSError):
                probe.sendto(source.encode(), (FAR_POD, PORT))
        for source, probe in probes.items():
            with contextlib.suppress(OSError):
                if probe.recv(64) == source.encode():
                    found.add(source)
    return found


async def test_flows_leave_a_link_that_loses_its_carrier_at_once_and_come_back(place: Place) -> None:
    with serve([(place.far, FAR_POD, Protocol.UDP, PORT)]):
        async with agent(place) as rig:
            await until(lambda: rig.hops(FAR4) == {"10.10.0.2", "10.11.0.2"})
            await until(lambda: rig.hops(FAR6) == {"fd10::2", "fd11::2"})
            before = [place.forwarded(index) for index in (0, 1)]
            assert await asyncio.to_thread(answered) == set(SOURCES)
            assert all(place.forwarded(index) > before[index] for index in (0, 1)), "both uplinks carry flows"

            place.carrier(0, "down")
            await until(lambda: rig.hops(FAR4) == {"10.11.0.2"} and rig.hops(FAR6) == {"fd11::2"}, 10)
            assert await asyncio.to_thread(answered) == set(SOURCES)
            lost = [peer for peer in rig.bgp.peers() if peer.address == "10.10.0.2"]
            assert [peer.established for peer in lost] == [True], "not because the session ended"
            await until(lambda: "no carrier" in rig.said().get("10.10.0.2", ""))

            place.carrier(0, "up")
            await until(lambda: rig.hops(FAR4) == {"10.10.0.2", "10.11.0.2"})
            await until(lambda: rig.hops(FAR6) == {"fd10::2", "fd11::2"}, 60)
            before = [place.forwarded(index) for index in (0, 1)]
            assert await asyncio.to_thread(answered) == set(SOURCES)
            assert all(place.forwarded(index) > before[index] for index in (0, 1))
            await until(lambda: not rig.said())


BAD = {
    "10.244.20.0/24": ("10.11.0.1", "it is an address of this node"),
    "10.244.21.0/24": ("192.0.2.1", "it is an address of this node"),
    "10.244.22.0/24": ("10.1.0.2", "it is a pod's address"),
    "10.244.23.0/24": ("198.51.100.1", "it is on no link of this node"),
    "10.244.24.0/24": ("10.10.0.255", "it is an address of this node"),
    "10.244.25.0/24": ("10.244.25.5", "it is on no link of this node"),
    "10.244.26.0/24": ("10.244.7.9", "it is on no link of this node"),
}
"""Prefix -> a next hop that cannot be used, and why."""


def announcing(index: int, hops: dict[str, str]) -> str:
    routes = " ".join(f"route {prefix} blackhole;" for prefix in BAD)
    wrong = " ".join(f"if net = {prefix} then bgp_next_hop = {hop};" for prefix, hop in hops.items())
    return bird_config(index, routes=routes, hops=wrong)


async def test_next_hops_that_cannot_be_used_are_left_out_of_the_others(place: Place) -> None:
    """The kernel would refuse the whole route, or a pod be handed what is not its own."""
    wrong = {prefix: hop for prefix, (hop, _) in BAD.items()}
    place.birds[0].write(announcing(0, wrong))
    place.birds[1].write(announcing(1, {}))
    for bird in place.birds:
        bird.birdc("configure")
    async with agent(place) as rig:
        await until(lambda: rig.hops(FAR4) == {"10.10.0.2", "10.11.0.2"})
        await until(lambda: all(rig.hops(prefix) == {"10.11.0.2"} for prefix in BAD))
        await until(lambda: rig.said().keys() >= set(wrong.values()))
        for hop, why in BAD.values():
            assert why in rig.said()[hop]
        rig.bgp.refresh_metrics()
        assert rig.node.metrics.registry.get_sample_value("felix_py_bgp_prefixes_unresolved") == 0

        # The one that has nothing else is taken away and not left as it was; the others stay.
        place.birds[1].write(bird_config(1))
        place.birds[1].birdc("configure")
        await until(lambda: not any(rig.hops(prefix) for prefix in BAD))
        assert rig.hops(FAR4) == {"10.10.0.2", "10.11.0.2"}
        rig.bgp.refresh_metrics()
        assert rig.node.metrics.registry.get_sample_value("felix_py_bgp_prefixes_unresolved") == len(BAD)
        assert not rig.node.reconciler.failures
        lines = [line for line in rig.node.logged if line.get("kind") == "next-hop"]
        assert len({line["subject"] for line in lines}) == len(lines), "each is said once"

        # They become usable: by another announcement, and by a link that the node gets.
        place.birds[0].write(announcing(0, {"10.244.23.0/24": "198.51.100.1"}))
        place.birds[0].birdc("configure")
        others = BAD.keys() - {"10.244.23.0/24"}
        await until(lambda: all(rig.hops(prefix) == {"10.10.0.2"} for prefix in others))
        assert rig.hops("10.244.23.0/24") == set()
        run("ip", "address", "add", "198.51.100.7/24", "dev", "tor2")
        await until(lambda: rig.hops("10.244.23.0/24") == {"198.51.100.1"})
        await until(lambda: not rig.said())
        run("ip", "address", "del", "198.51.100.7/24", "dev", "tor2")
        await until(lambda: rig.hops("10.244.23.0/24") == set())


async def test_next_hop_moves_with_its_subnet_to_another_interface(place: Place) -> None:
    async with agent(place) as rig:
        await until(lambda: rig.hops(FAR4) == {"10.10.0.2", "10.11.0.2"})
        run("ip", "address", "add", "10.10.0.5/29", "dev", "up0")
        await until(lambda: "via 10.10.0.2 dev up0" in run("ip", "route", "show", FAR4, "proto", "89"))
        run("ip", "address", "del", "10.10.0.5/29", "dev", "up0")
        await until(lambda: "via 10.10.0.2 dev tor1" in run("ip", "route", "show", FAR4, "proto", "89"))
