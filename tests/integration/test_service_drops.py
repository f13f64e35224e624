"""Packets for Service prefixes that no Service has end on the node; all others go where they went before."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from felix_py.dataplane.service_drops import Dropping, ServiceDrops
from policy.model import Family, Packet, Protocol
from tests.support.isolate import NetworkNamespace, run
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

V4, V6 = Family
NODE, TOR = {V4: "192.0.2.1", V6: "2001:db8::1"}, {V4: "192.0.2.9", V6: "2001:db8::9"}
POD, GATEWAY = {V4: "10.1.0.2", V6: "fd00:1::2"}, {V4: "10.1.0.1", V6: "fd00:1::1"}
RANGES = {V4: "10.96.0.0/12", V6: "fd00:96::/112"}
SERVICE, NOBODY = {V4: "10.96.0.10", V6: "fd00:96::10"}, {V4: "10.97.0.9", V6: "fd00:96::99"}
OTHERS = {V4: "10.98.0.7", V6: "fd00:96::7"}
BITS = {V4: 32, V6: 128}


@dataclass
class Rack:
    """A node in the current namespace, with a pod, and a default route to a router that sends it the Services."""

    tor: NetworkNamespace
    pod: NetworkNamespace

    def returned(self, family: Family, address: str) -> int:
        """How often one packet from the router to an address comes back to it."""
        tool = "iptables-nft" if family is V4 else "ip6tables-nft"
        self.tor.run(tool, "-t", "raw", "-F")
        self.tor.run(tool, "-t", "raw", "-A", "PREROUTING", "-d", address, "-j", "ACCEPT")
        kind = socket.AF_INET if family is V4 else socket.AF_INET6
        with self.tor.enter(), socket.socket(kind, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"?", (address, 9))
        # One link, in order: once the pod has answered, the packet before is where it goes, at least once around.
        assert self.reached(family, POD[family])
        counted = self.tor.run(tool, "-t", "raw", "-nvxL", "PREROUTING").splitlines()[2]
        return int(counted.split()[0])

    def reached(self, family: Family, address: str, source: str = "") -> bool:
        """Whether the pod answers the router, or whoever has the source address on the node, at an address."""
        packet = Packet(source or TOR[family], address, Protocol.UDP, 80)
        with serve([(self.pod, POD[family], Protocol.UDP, 80)]):
            if not source:
                return bool(attempt([(self.tor, packet)], 20))
            return bool(attempt([(_Here(), packet)], 20))  # type: ignore[list-item]


class _Here:
    """The current namespace, as a place to send from."""

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        yield


@pytest.fixture
def rack(make_netns: Callable[[str], NetworkNamespace]) -> Rack:
    rack = Rack(make_netns("tor"), make_netns("pod"))
    for there, device, mine, theirs in ((rack.tor, "up0", NODE, TOR), (rack.pod, "pod0", GATEWAY, POD)):
        run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", there.name)
        for command, name, addresses in ((run, device, mine), (there.run, "eth0", theirs)):
            for family, address in addresses.items():
                nodad = ["nodad"] if family is V6 else []
                length = "24" if family is V4 else "64"
                command("ip", "address", "add", f"{address}/{length}", "dev", name, *nodad)
            command("ip", "link", "set", name, "up")
    for command, gateways in ((run, TOR), (rack.pod.run, GATEWAY), (rack.tor.run, NODE)):
        command("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        for family, gateway in gateways.items():
            command("ip", f"-{int(family)}", "route", "add", "default", "via", gateway)
    eventually(lambda: "LOWER_UP" in run("ip", "link", "show", "dev", "pod0"))
    for family in Family:
        eventually(partial(rack.reached, family, POD[family]), 60)
    return rack


def translate(family: Family) -> None:
    """A Service as kube-proxy has it, for what comes in and for the node's own packets."""
    tool = "iptables-nft" if family is V4 else "ip6tables-nft"
    to = POD[family] if family is V4 else f"[{POD[family]}]"
    for chain in ("PREROUTING", "OUTPUT"):
        rule = ["-d", SERVICE[family], "-p", "udp", "--dport", "80", "-j", "DNAT", "--to-destination", to]
        run(tool, "-t", "nat", "-A", chain, *rule)


@pytest.mark.parametrize("family", Family)
def test_packets_that_no_service_takes_end_here_and_all_others_do_not(rack: Rack, family: Family) -> None:
    drops = ServiceDrops(tuple(Family))
    translate(family)
    assert rack.returned(family, NOBODY[family]) > 0, "it goes back and forth until its TTL is 0"
    before = run("ip", "rule"), run("ip", "-6", "rule"), run("ip", "route"), run("ip", "-6", "route")
    host = f"{SERVICE[family]}/{BITS[family]}"
    assert drops.apply([RANGES[V4], RANGES[V6], host])
    assert rack.returned(family, NOBODY[family]) == 0
    # A live Service is translated before its packets are routed, and is not in any of our routes' way.
    assert rack.reached(family, SERVICE[family])
    # The node's own packets are translated after they were routed.
    assert rack.reached(family, SERVICE[family], source=NODE[family])
    assert drops.apply([RANGES[V4], RANGES[V6], host]) == []
    assert len(drops.owned()) == 11, "a rule and two for each length, and a blackhole each"
    drops.apply([])
    assert drops.owned() == []
    assert (run("ip", "rule"), run("ip", "-6", "rule"), run("ip", "route"), run("ip", "-6", "route")) == before
    assert rack.returned(family, NOBODY[family]) > 0


@pytest.mark.parametrize("family", Family)
def test_another_s_route_is_never_shadowed(rack: Rack, family: Family) -> None:
    """Somebody has a machine in the range, and somebody else a part of it by way of a gateway."""
    drops = ServiceDrops(tuple(Family))
    drops.apply([RANGES[family], f"{OTHERS[family]}/{BITS[family]}"])
    assert rack.returned(family, OTHERS[family]) == 0
    nodad = ["nodad"] if family is V6 else []
    own = f"{OTHERS[family]}/{BITS[family]}"
    rack.pod.run("ip", "address", "add", own, "dev", "eth0", *nodad)
    for destination in (own, str(RANGES[family])):
        run("ip", f"-{int(family)}", "route", "add", destination, "via", POD[family])
        packet = Packet(TOR[family], OTHERS[family], Protocol.UDP, 81)
        with serve([(rack.pod, OTHERS[family], Protocol.UDP, 81)]):
            assert attempt([(rack.tor, packet)], 20)
        drops.apply([RANGES[family]])
        run("ip", f"-{int(family)}", "route", "del", destination)
    assert rack.returned(family, OTHERS[family]) == 0


def test_what_others_remove_comes_back_and_what_is_half_there_is_completed(rack: Rack) -> None:
    drops = ServiceDrops([V4])
    run("ip", "rule", "add", "pref", "100", "to", "198.51.100.0/24", "lookup", "main")
    run("ip", "route", "add", "blackhole", "198.51.100.0/24", "table", "88012", "proto", "static")
    drops.apply([RANGES[V4], RANGES[V6]])
    assert "88064" not in run("ip", "-6", "rule")
    whole = drops.owned()
    run("ip", "rule", "del", "pref", "32400")
    run("ip", "route", "flush", "table", "88012", "proto", "88")
    # A blackhole of a longer length without a rule, as after a crash between the two.
    run("ip", "route", "add", "blackhole", "10.99.0.0/16", "table", "88016", "proto", "88")
    assert len(drops.apply([RANGES[V4]])) == 3
    assert drops.owned() == whole
    assert rack.returned(V4, NOBODY[V4]) == 0
    drops.apply([])
    assert "100:" in run("ip", "rule")
    assert "198.51.100.0/24" in run("ip", "route", "show", "table", "88012")


async def test_it_follows_what_is_announced_and_says_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    dropping, look = Dropping([V4], told.append), ServiceDrops([V4])
    monkeypatch.setattr("felix_py.dataplane.service_drops._RETRY", 0.01)
    task = asyncio.create_task(dropping.run())
    dropping.set([RANGES[V4]])
    await until(look.owned)
    dropping.set(["no CIDR"])
    await until(lambda: told and "not dropped" in told[-1])
    assert look.owned(), "what was there stays"
    dropping.set([])
    await until(lambda: not look.owned() and told[-1] == "")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
