"""Connections that a change of policy ends, with real packets: what is denied stops, nothing beside it does."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from felix_py.agent.concerned import Due
from felix_py.agent.flows import Flows
from felix_py.agent.revoke import Quiet, Revoker
from felix_py.dataplane import sysctl
from felix_py.dataplane.conntrack import Conntrack
from felix_py.dataplane.host_addresses import host_addresses
from felix_py.dataplane.protocols import Look
from felix_py.metrics import Metrics
from felix_py.reconcile import Reconciler
from felix_py.records import Backend
from felix_py.refs import KINDS
from policy.model import Family, IPBlock, NetworkPolicy, Packet, PodPeer, PolicyRule, Port, Protocol
from tests.support import kernel_state
from tests.support.builders import labelled, policy
from tests.support.isolate import NetworkNamespace, run
from tests.support.policy_node import NODE, WORLD, PolicyNode
from tests.support.streams import Stream, Streams
from tests.support.traffic import attempt, serve
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

TCP, UDP = Protocol.TCP, Protocol.UDP
SERVICE = {Family.V4: "10.96.0.1", Family.V6: "fd00:96::1"}
ENOUGH = 60
"""Records after which a stream has said enough, about a third of a second."""


class Living(PolicyNode):
    """A node that is at work: reconciler and revoker run as in the agent."""

    def __init__(self, backend: Backend, make: Callable[[str], NetworkNamespace], **settings: Any) -> None:
        super().__init__(backend, make, **settings)
        self.host_closed = settings.get("endpoint_to_host") == "DROP"
        for name, app in (("web", "web"), ("api", "api"), ("db", "db")):
            self.add_pod("shop", name, app=app)

    @asynccontextmanager
    async def work(self, *, revoking: bool = True) -> AsyncIterator[None]:
        self.metrics = Metrics()
        due = Due()
        with Conntrack() as table, Conntrack() as releasing:
            self.flows = Flows(table, releasing, self.metrics, due.suspect)
            chains_of = self.facts.engine.chains_of
            revoker = Revoker(
                self.facts.view,
                chains_of,
                self.flows,
                due,
                host_addresses,
                self.metrics,
                Quiet(0.05, 0.5),
                host_closed=self.host_closed,
            )
            self.reconciler = Reconciler(
                self.pending,
                self.planner,
                self.kernel,
                self.facts.collect,
                self.metrics,
                refresh_interval=3600,
                on_drift=[revoker.mended] if revoking else (),
                on_applied=[revoker.applied] if revoking else (),
            )
            tasks = [asyncio.create_task(self.reconciler.run())]
            if revoking:
                self.on_policy.append(revoker.collected)
                tasks.append(asyncio.create_task(revoker.run()))
            try:
                await self.reconciler.settled()
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self.flows.close()

    async def change(self, *policies: NetworkPolicy) -> None:
        for one in policies:
            self.facts.upsert(one)
        await self.reconciler.settled()

    async def revoked(self, count: int) -> float:
        """Once so many connections were ended: that moment."""
        await until(lambda: self.count("felix_py_flows_revoked_total") >= count)
        assert self.count("felix_py_flows_revoked_total") == count
        return time.monotonic()

    def count(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0

    def stream(self, streams: Streams, family: Family, source: str, destination: str, port: int) -> Stream:
        """A connection between two pods, by name."""
        ends = [self.address(name, family) for name in (source, destination)]
        return streams.open(self.places[source], ends[0], self.places[destination], ends[1], port)

    def address(self, name: str, family: Family) -> str:
        return self.pods[name].addresses[list(Family).index(family)]


async def all_talk(streams: list[Stream], more: int = ENOUGH) -> None:
    """Until each has got on by so much."""
    targets = [stream.progress + more for stream in streams]
    await until(lambda: all(s.progress >= target for s, target in zip(streams, targets, strict=True)))


def idents(streams: list[Stream]) -> list[str]:
    """The kernel's id of each connection's entry, as conntrack(8) shows it."""
    lines = [
        line
        for family in ("ipv4", "ipv6")
        for line in run("conntrack", "-L", "-f", family, "-p", "tcp", "-o", "id").splitlines()
    ]
    found = []
    for stream in streams:
        (source, port), (destination, _) = (
            end[:2] for end in (stream.client.sock.getsockname(), stream.client.sock.getpeername())
        )
        # All of it: another connection may have the same port, and the same address in its answers.
        mine = [line for line in lines if f"src={source} dst={destination} sport={port} " in line]
        assert len(mine) == 1, f"{stream.name}: {mine}"
        ident = re.search(r" id=(\d+)", mine[0])
        assert ident
        found.append(ident[1])
    return found


@pytest.fixture(params=list(Backend), ids=str)
def make_node(
    request: pytest.FixtureRequest, make_netns: Callable[[str], NetworkNamespace]
) -> Iterator[Callable[..., Living]]:
    made: list[Living] = []

    def make(**options: Any) -> Living:
        made.append(Living(request.param, make_netns, **options))
        return made[-1]

    sysctl.set_up_host(tuple(Family))
    yield make
    for node in made:
        node.kernel.close()


def only(app: str, *ports: int) -> NetworkPolicy:
    """An app can be reached from api, on some ports."""
    rule = PolicyRule((PodPeer(None, labelled(app="api")),), tuple(Port(TCP, port) for port in ports))
    return policy(f"to-{app}", labelled(app=app), ingress=(rule,))


def only_out(app: str, *ports: int) -> NetworkPolicy:
    """An app reaches some ports, wherever."""
    rule = PolicyRule(None, tuple(Port(TCP, port) for port in ports))
    return policy(f"from-{app}", labelled(app=app), egress=(rule,))


@pytest.mark.parametrize("restrict", [only("db", 8080), only_out("api", 8080)], ids=["ingress", "egress"])
async def test_the_denied_stream_stops_and_those_beside_it_do_not_stutter(
    make_node: Callable[..., Living], restrict: NetworkPolicy
) -> None:
    node = make_node()

    async with node.work():
        with Streams() as streams:
            denied = [node.stream(streams, f, "api", "db", 80) for f in Family]
            # The same pods, another port; another pair; and the other way round.
            kept = [node.stream(streams, f, "api", "db", 8080) for f in Family]
            kept += [node.stream(streams, f, "web", "api", 80) for f in Family]
            kept += [node.stream(streams, f, "db", "web", 80) for f in Family]
            await all_talk(denied + kept)
            before = idents(kept)
            await node.change(restrict)
            ended = await node.revoked(len(denied))
            await all_talk(kept, 3 * ENOUGH)
            assert [stream.name for stream in denied if stream.heard_after(ended)] == []
            assert [stream.name for stream in kept if not stream.intact] == []
            assert idents(kept) == before
            # What was lost on the way is sent again for minutes: it does not come through later either.
            assert all(stream.client.sent > stream.progress for stream in denied)


@pytest.mark.parametrize("restrict", [only("db", 8080), only_out("api", 8080)], ids=["ingress", "egress"])
async def test_without_the_rule_on_midstream_tcp_the_denied_stream_would_go_on(
    make_node: Callable[..., Living], restrict: NetworkPolicy
) -> None:
    """What the other end sends makes a new connection in the other direction, which no policy forbids."""
    node = make_node(drop_midstream=False)

    async with node.work():
        with Streams() as streams:
            denied = [node.stream(streams, f, "api", "db", 80) for f in Family]
            await all_talk(denied)
            await node.change(restrict)
            ended = await node.revoked(len(denied))
            await until(lambda: all(stream.heard_after(ended) > ENOUGH for stream in denied))


@pytest.mark.parametrize("closed", [True, False], ids=["stops", "without the rule"])
async def test_a_stream_from_a_pod_to_its_node(make_node: Callable[..., Living], closed: bool) -> None:
    node = make_node(drop_midstream=closed)

    async with node.work():
        with Streams() as streams:
            place = node.places["api"]
            denied = [streams.open(place, node.address("api", f), None, NODE[f], 80) for f in Family]
            kept = [streams.open(place, node.address("api", f), None, NODE[f], 8080) for f in Family]
            # What the node began is not its pods' to end.
            kept += [streams.open(None, NODE[f], place, node.address("api", f), 81) for f in Family]
            await all_talk(denied + kept)
            before = idents(kept)
            await node.change(only_out("api", 8080), policy("closed", labelled(app="api"), ingress=()))
            ended = await node.revoked(len(denied))
            await all_talk(kept)
            if closed:
                assert not any(stream.heard_after(ended) for stream in denied)
            else:
                await until(lambda: all(stream.heard_after(ended) > ENOUGH for stream in denied))
            assert all(stream.intact for stream in kept)
            assert idents(kept) == before


async def test_a_service_is_judged_by_where_it_leads(make_node: Callable[..., Living]) -> None:
    node = make_node()
    for family in Family:
        table = "iptables" if family is Family.V4 else "ip6tables"
        for port, target in ((80, 8080), (8080, 80)):
            to = node.address("db", family)
            goal = f"{to}:{target}" if family is Family.V4 else f"[{to}]:{target}"
            match = ("-d", SERVICE[family], "-p", "tcp", "--dport", str(port))
            argv = (f"{table}-{node.backend}", "-t", "nat", "-A", "PREROUTING", *match, "-j", "DNAT")
            run(*argv, "--to-destination", goal)

    async with node.work():
        with Streams() as streams:

            def to_service(family: Family, port: int, target: int) -> Stream:
                api, db = node.address("api", family), node.address("db", family)
                return streams.open(
                    node.places["api"], api, node.places["db"], db, target, to=(SERVICE[family], port)
                )

            denied = [to_service(family, 8080, 80) for family in Family]
            kept = [to_service(family, 80, 8080) for family in Family]
            await all_talk(denied + kept)
            before = idents(kept)
            await node.change(only("db", 8080))
            ended = await node.revoked(len(denied))
            await all_talk(kept)
            assert not any(stream.heard_after(ended) for stream in denied)
            assert all(stream.intact for stream in kept)
            assert idents(kept) == before


async def test_a_masqueraded_stream_is_its_pods(make_node: Callable[..., Living]) -> None:
    node = make_node(nat_outgoing=True)

    async with node.work():
        with Streams() as streams:

            def out(family: Family, port: int) -> Stream:
                place = (node.places["api"], node.address("api", family))
                return streams.open(*place, node.world, WORLD[family], port)

            denied, kept = [out(f, 80) for f in Family], [out(f, 8080) for f in Family]
            peers = {stream.server.sock.getpeername()[0] for stream in denied}
            assert peers == set(NODE.values())
            await all_talk(denied + kept)
            before = idents(kept)
            world = tuple(IPBlock(f"{WORLD[f]}/{f.bits}") for f in Family)
            rule = PolicyRule(world, (Port(TCP, 8080),))
            await node.change(policy("out", labelled(app="api"), egress=(rule,)))
            ended = await node.revoked(len(denied))
            await all_talk(kept)
            assert not any(stream.heard_after(ended) for stream in denied)
            assert all(stream.intact for stream in kept)
            assert idents(kept) == before


async def test_switched_off_established_connections_are_left_alone(make_node: Callable[..., Living]) -> None:
    node = make_node(drop_midstream=False)

    async with node.work(revoking=False):
        with Streams() as streams:
            flows = [node.stream(streams, family, "api", "db", 80) for family in Family]
            await all_talk(flows)
            before = idents(flows)
            await node.change(only("db", 8080))
            await all_talk(flows, 3 * ENOUGH)
            assert all(stream.intact for stream in flows)
            assert idents(flows) == before
            assert node.count("felix_py_flows_revoked_total") == 0


async def test_udp_and_ping_that_are_denied_get_no_further(make_node: Callable[..., Living]) -> None:
    node = make_node()

    async with node.work():
        ends = {f: (node.address("api", f), node.address("db", f)) for f in Family}
        asked = [Packet(*ends[f], UDP, port) for f in Family for port in (53, 54)]
        with serve([(node.places["db"], p.destination, UDP, p.port) for p in asked]):
            tries = [(node.places["api"], packet) for packet in asked]
            assert await asyncio.to_thread(attempt, tries, 2) == set(asked)
            assert all(echo(node.places["api"], *ends[f], 5) for f in Family)
            assert len(datagrams()) == len(asked) + 2
            dns = PolicyRule((PodPeer(None, labelled(app="api")),), (Port(UDP, 53),))
            await node.change(policy("db", labelled(app="db"), ingress=(dns,)))
            await node.revoked(4)
            assert len(datagrams()) == 2
            assert all("dport=53 " in line for line in datagrams())
            assert await asyncio.to_thread(attempt, tries) == {p for p in asked if p.port == 53}
            assert not any(echo(node.places["api"], *ends[f], 0.3) for f in Family)


def echo(place: NetworkNamespace, source: str, destination: str, seconds: float) -> bool:
    """Whether an ICMP echo request (RFC 792, RFC 4443) is answered."""
    v6 = ":" in source
    with place.enter():
        sock = socket.socket(
            socket.AF_INET6 if v6 else socket.AF_INET,
            socket.SOCK_RAW,
            socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP,
        )
    with sock:
        sock.bind((source, 0))
        sock.settimeout(seconds)
        # Type, code, checksum (IPv6: the kernel's work), identifier 0, sequence 0.
        sock.sendto(bytes([128, 0, 0, 0, 0, 0, 0, 0]) if v6 else b"\x08\0\xf7\xff\0\0\0\0", (destination, 0))
        with suppress(TimeoutError):
            while True:
                answer, (sender, *_) = sock.recvfrom(256)
                if sender == destination and answer[0 if v6 else 20] == (129 if v6 else 0):
                    return True
    return False


def datagrams() -> list[str]:
    """Entries of UDP and ICMP between the pods, as conntrack(8) shows them."""
    shown = [
        run("conntrack", "-L", "-f", family, "-p", protocol).splitlines()
        for family, protocol in (("ipv4", "udp"), ("ipv6", "udp"), ("ipv4", "icmp"), ("ipv6", "icmpv6"))
    ]
    return [line for lines in shown for line in lines if "src=10.1." in line or "src=fd00:1::" in line]


GAPS = {
    "FORWARD flushed": "{iptables} -F FORWARD",
    "table flushed": "{iptables} -F",
    "dispatch flushed": "{iptables} -F FELIX-FORWARD",
    "rule put into a class": "{iptables} -I {chain} 1 -j FELIX-ALLOW",
    "class taken away": "ipset del {ours}-ingress {db}",
    "member of a policy's set": "ipset add {peers} {web}",
    "classes flushed": "ipset flush {ours}-ingress",
}
"""What an administrator or another program does to rules and sets."""


@pytest.mark.parametrize("gap", GAPS)
async def test_what_began_while_rules_or_sets_were_spoilt_ends_once_they_are_right(
    make_node: Callable[..., Living], gap: str
) -> None:
    node = make_node()

    async with node.work():
        await node.change(only("db", 80))
        node.reconciler.sweep()
        with Streams() as streams:
            kept = [node.stream(streams, f, "api", "db", 80) for f in Family]
            kept += [node.stream(streams, f, "web", "api", 80) for f in Family]
            await all_talk(kept)
            before = idents(kept)
            for family in Family:
                run(*GAPS[gap].format(**places(node, family)).split())
            begun = [node.stream(streams, f, "web", "db", 80) for f in Family]
            await all_talk(begun, 10)
            if not GAPS[gap].startswith("ipset"):  # that is found by itself
                node.pending.look(Look.RULES)
            ended = await node.revoked(len(begun))
            await all_talk(kept)
            assert [stream.name for stream in begun if stream.heard_after(ended)] == []
            assert [stream.name for stream in kept if not stream.intact] == []
            assert idents(kept) == before


async def test_what_reached_the_closed_host_through_a_gap_ends_too(make_node: Callable[..., Living]) -> None:
    node = make_node(endpoint_to_host="DROP")

    async with node.work():
        with Streams() as streams:
            place = node.places["api"]
            kept = [streams.open(None, NODE[f], place, node.address("api", f), 81) for f in Family]
            kept += [node.stream(streams, f, "api", "db", 80) for f in Family]
            for tool in ("iptables", "ip6tables"):
                run(f"{tool}-{node.backend}", "-F", "FELIX-INPUT")
            begun = [streams.open(place, node.address("api", f), None, NODE[f], 80) for f in Family]
            await all_talk(begun + kept, 10)
            before = idents(kept)
            node.pending.look(Look.RULES)
            await node.revoked(len(begun))
            await all_talk(kept)
            assert [stream.name for stream in kept if not stream.intact] == []
            assert idents(kept) == before


def places(node: Living, family: Family) -> dict[str, str]:
    """Names for the commands above."""
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{node.backend}"
    api = node.address("api", family)
    sets = [name for name, members in kernel_state.sets().items() if members == [api]]
    chains = [line for line in run(f"{tool}-save").splitlines() if line.startswith(":FELIX-CI-")]
    assert (len(sets), len(chains)) == (1, 1)
    found = {"iptables": tool, "ours": f"felix{int(family)}", "peers": sets[0], "chain": chains[0].split()[0][1:]}
    return {**found, "db": node.address("db", family), "web": node.address("web", family)}


async def test_drift_that_decides_nothing_about_policy_costs_no_look_at_the_connections(
    make_node: Callable[..., Living],
) -> None:
    node = make_node(nat_outgoing=True)

    async with node.work():
        await node.change(only("db", 80))
        passes = "felix_py_flow_pass_seconds_count"
        await until(lambda: node.count(passes) == 1)
        run("ip", "route", "del", node.address("db", Family.V4))
        run(f"iptables-{node.backend}", "-t", "nat", "-F", "FELIX-POSTROUTING")
        node.pending.look(Look.RULES | Look.ROUTES)
        await until(lambda: sum(drift_counts(node)) == 2)
        await node.reconciler.settled()
        # What came later has been looked at, and nothing before it.
        await node.change(only("db", 8080))
        await until(lambda: node.count(passes) > 1)
        assert node.count(passes) == 2


def drift_counts(node: Living) -> list[float]:
    return [node.metrics.registry.get_sample_value("felix_py_drift_total", {"kind": kind}) or 0 for kind in KINDS]


async def test_after_a_flush_of_the_table_streams_are_taken_up_again(make_node: Callable[..., Living]) -> None:
    """``conntrack -F`` by an administrator: only who may be somebody's denied server has to begin anew."""
    node = make_node()
    node.add_pod("shop", "tool", app="tool")

    async with node.work():
        await node.change(only("db", 8080), only_out("api", 8080))
        with Streams() as streams:
            kept = [node.stream(streams, f, "web", "tool", 80) for f in Family]
            kept += [node.stream(streams, f, "api", "db", 8080) for f in Family]
            await all_talk(kept)
            run("conntrack", "-F")
            await all_talk(kept)
            assert all(stream.intact for stream in kept)


async def test_what_a_released_address_had_goes_with_it(make_node: Callable[..., Living]) -> None:
    node = make_node()

    async with node.work():
        with Streams() as streams:
            gone = [node.stream(streams, f, "api", "db", 80) for f in Family]
            gone += [node.stream(streams, f, "db", "web", 80) for f in Family]
            kept = [node.stream(streams, f, "web", "api", 80) for f in Family]
            await all_talk(gone + kept)
            before = idents(kept)
            await asyncio.gather(*(node.flows.forget([a]) for a in node.pods["db"].addresses))
            assert node.count("felix_py_flows_released_total") == len(gone)
            assert idents(kept) == before
            await all_talk(kept)
            assert all(stream.intact for stream in kept)
