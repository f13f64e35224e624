"""Dropped packets become events with the right names, whatever dropped them: both backends, both families."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from felix_py.dataplane import sysctl
from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.nflog import NflogError, NflogReader
from felix_py.dataplane.probe import refusal
from felix_py.desired.deny_log import SOURCE_DROP
from felix_py.layout import interface_name
from felix_py.metrics import Metrics
from felix_py.observe.denies import Denies
from felix_py.observe.deny_events import DenyEvent, Describer, PolicyName, Reason
from felix_py.observe.deny_reader import NOT_YET, DenyReader
from felix_py.records import Backend, Lease, Report
from felix_py.ruleset.model import Jump, Log, RuleSpec
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Direction,
    Family,
    NetworkPolicy,
    Packet,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
    Tier,
)
from policy.selectors import EVERYTHING
from tests.support.isolate import NetworkNamespace, run
from tests.support.policy_node import DENY_LOG, MARKS, NODE, WORLD, LiveView, PolicyNode
from tests.support.traffic import attempt, serve
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

TCP, UDP = Protocol.TCP, Protocol.UDP
PATIENCE = 10.0


class Rig(PolicyNode):
    """A node whose deny log is read."""

    def __init__(self, backend: Backend, make: Callable[[str], NetworkNamespace], **settings: object) -> None:
        sysctl.set_up_host(tuple(Family))
        super().__init__(backend, make, **settings)
        for name, app in (("web", "web"), ("db", "db")):
            self.add_pod("shop", name, app=app)
        self.add_pod("dev", "tool", app="tool")
        describer = Describer("node", LiveView(self), self.chain_names, self.facts.held.pod_of)
        self.denies = Denies(describer, Metrics(), lines=False)
        self.reader = NflogReader(DENY_LOG.group, 128, self.denies.note)

    def close(self) -> None:
        self.reader.close()
        self.kernel.close()

    def send(self, source: str, destination: str, protocol: Protocol, port: int) -> None:
        """One packet from a pod (or the world) to a pod or an address, in both families; nothing answers."""
        place = self.places.get(source, self.world)
        sources = self.pods[source].addresses if source in self.pods else tuple(WORLD.values())
        targets = {"world": tuple(WORLD.values()), "node": tuple(NODE.values())}
        destinations = self.pods[destination].addresses if destination in self.pods else targets[destination]
        tries = [(place, Packet(a, b, protocol, port)) for a, b in zip(sources, destinations, strict=True)]
        assert attempt(tries, 0.2) == set()

    def event(self, source: str, destination: str) -> DenyEvent:
        """The one event between two addresses, once it is there."""
        deadline = time.monotonic() + PATIENCE
        while True:
            ends = [(event.source.address, event.destination.address) for event in self.denies.events()]
            if (source, destination) in ends:
                assert ends.count((source, destination)) == 1
                return self.denies.events()[ends.index((source, destination))]
            assert time.monotonic() < deadline, f"no event; there are {self.denies.events()}"
            select.select([self.reader], [], [], 0.1)
            self.reader.read()


@pytest.fixture
def rig(backend: Backend, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Rig]:
    rig = Rig(backend, make_netns)
    yield rig
    rig.close()


def addresses(rig: Rig, pod: str) -> dict[Family, str]:
    return dict(zip(Family, rig.pods[pod].addresses, strict=True))


DENY = NetworkPolicy("shop", "deny", EVERYTHING, ingress=(), egress=())
DENY_NAME = PolicyName("NetworkPolicy", "deny", "shop")


def test_isolated_pods_in_both_directions(rig: Rig) -> None:
    rig.apply_policy(DENY)
    rig.send("tool", "db", TCP, 5432)
    rig.send("web", "world", UDP, 53)
    tool, db, web = (addresses(rig, pod) for pod in ("tool", "db", "web"))
    for family in Family:
        event = rig.event(tool[family], db[family])
        assert (event.direction, event.reason, event.endpoint) == ("ingress", Reason.ISOLATED, "shop/db")
        assert (event.source.pod, event.destination.pod) == ("dev/tool", "shop/db")
        assert (event.protocol, event.destination.port, event.count, event.node) == ("TCP", 5432, 1, "node")
        assert event.message == "isolated by NetworkPolicy shop/deny (ingress); none of its rules allows it"
        assert event.policies == (DENY_NAME,)
        assert event.hook == "FORWARD"
        assert event.in_interface == interface_name("tool", "eth0")
        assert event.out_interface == interface_name("db", "eth0")
        event = rig.event(web[family], WORLD[family])
        assert (event.direction, event.reason, event.endpoint) == ("egress", Reason.ISOLATED, "shop/web")
        assert (event.source.pod, event.destination.pod, event.destination.node) == ("shop/web", "", "other")
        assert (event.protocol, event.destination.port) == ("UDP", 53)


def test_a_pod_of_which_nothing_is_known(rig: Rig) -> None:
    lease = Lease("x", "eth0", "n", "dev", "new", "u", interface_name("tool", "eth0"), {}, 99.0)
    rig.facts.detach(Lease("tool", "eth0", "n", "dev", "tool", "u", lease.interface, {}, 4.0))
    tool = addresses(rig, "tool")
    rig.facts.attach(Lease("x", "eth0", "n", "dev", "new", "u", lease.interface, tool, 99.0))
    rig.apply()
    rig.send("tool", "db", TCP, 80)
    event = rig.event(tool[Family.V4], addresses(rig, "db")[Family.V4])
    assert (event.direction, event.reason) == ("egress", Reason.UNKNOWN_POD)


def test_a_deny_rule_of_a_cluster_policy(rig: Rig) -> None:
    shop = PodPeer(EVERYTHING, None)
    rules = (
        ClusterRule(RuleAction.DENY, (shop,), (Port(TCP, 1), Port(UDP, 1)), "one"),
        ClusterRule(RuleAction.PASS, (shop,), (Port(TCP, 2),)),
        ClusterRule(RuleAction.DENY, (shop,), (Port(TCP, 3),), 'no -j ACCEPT "three"'),
    )
    guard = ClusterPolicy(PolicyKind.CLUSTER, "guard", Tier.ADMIN, 1, shop, ingress=rules)
    rig.apply_policy(guard)
    rig.send("web", "db", TCP, 3)
    web, db = addresses(rig, "web"), addresses(rig, "db")
    for family in Family:
        event = rig.event(web[family], db[family])
        assert (event.direction, event.reason, event.endpoint) == ("ingress", Reason.POLICY, "shop/db")
        assert event.decided_by is not None
        assert event.decided_by.policy == PolicyName("ClusterNetworkPolicy", "guard")
        assert (event.decided_by.rule, event.decided_by.tier) == (2, "Admin")
        assert event.decided_by.rule_name == 'no -j ACCEPT "three"'
        assert event.message.startswith('denied by ClusterNetworkPolicy guard ingress[2] "no -j ACCEPT')


def test_a_source_address_that_is_not_the_pods(rig: Rig) -> None:
    rig.apply()
    web, tool = addresses(rig, "web"), rig.places["tool"]
    for family, stolen in web.items():
        nodad = ["nodad"] if family is Family.V6 else []
        tool.run("ip", "addr", "add", f"{stolen}/{family.bits}", "dev", "eth0", *nodad)
        assert attempt([(tool, Packet(stolen, WORLD[family], UDP, 53))], 0.2) == set()
        event = rig.event(stolen, WORLD[family])
        assert (event.direction, event.reason, event.endpoint) == ("egress", Reason.SOURCE, "dev/tool")
        assert event.source.pod == "dev/tool"
        assert event.message == f"dev/tool sent from {stolen}, which is not its address"
        assert event.hook == "PREROUTING"
    assert {event.reason for event in rig.denies.events()} == {Reason.SOURCE}
    assert not [event for event in rig.denies.events() if event.destination.address.startswith("ff")]


def test_a_packet_of_no_connection(rig: Rig) -> None:
    rig.apply()
    web, db = addresses(rig, "web"), addresses(rig, "db")
    # SYN and FIN at once, and no checksum: of no use to anybody, which connection tracking says, too.
    header = struct.pack(">HHIIBBHHH", 40000, 80, 1, 0, 5 << 4, 0x03, 1024, 0, 0)
    for family, kind in ((Family.V4, socket.AF_INET), (Family.V6, socket.AF_INET6)):
        with rig.places["web"].enter(), socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.sendto(header, (db[family], 0))
        event = rig.event(web[family], db[family])
        assert (event.direction, event.reason, event.endpoint) == ("", Reason.INVALID, "")
        assert (event.source.pod, event.source.port) == ("shop/web", 40000)
        assert (event.destination.pod, event.destination.port) == ("shop/db", 80)


def test_a_class_number_that_no_rule_knows(rig: Rig) -> None:
    rig.apply_policy(DENY)
    web, db = addresses(rig, "web"), addresses(rig, "db")
    for family in Family:
        mark, mask = MARKS.class_mark(Direction.EGRESS, 100), MARKS.class_mask(Direction.EGRESS)
        name, member = f"felix{int(family)}-egress", web[family]
        run("ipset", "add", "-exist", name, member, "skbmark", f"{mark:#x}/{mask:#x}")
    rig.send("web", "db", TCP, 80)
    for family in Family:
        event = rig.event(web[family], db[family])
        assert (event.direction, event.reason, event.endpoint) == ("egress", Reason.CLASS, "shop/web")


def test_packets_to_the_node_when_it_takes_none(
    backend: Backend, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    rig = Rig(backend, make_netns, endpoint_to_host="DROP")
    try:
        rig.apply()
        rig.send("web", "node", UDP, 53)
        for family in Family:
            event = rig.event(addresses(rig, "web")[family], NODE[family])
            assert (event.direction, event.reason, event.hook) == ("egress", Reason.HOST, "INPUT")
            assert event.endpoint == "shop/web"
    finally:
        rig.close()


def test_the_policies_of_a_chain_that_is_gone_are_still_named(rig: Rig) -> None:
    rig.apply_policy(DENY)
    rig.send("tool", "db", TCP, 80)
    rig.facts.delete(DENY)
    rig.apply()
    event = rig.event(addresses(rig, "tool")[Family.V4], addresses(rig, "db")[Family.V4])
    assert event.policies == (DENY_NAME,)


def test_a_flood_is_logged_up_to_the_limit_and_does_not_disturb_what_is_allowed(rig: Rig) -> None:
    allow = PolicyRule((PodPeer(None, None),), (Port(UDP, 53),))
    rig.apply_policy(NetworkPolicy("shop", "some", EVERYTHING, ingress=(allow,)))
    web, db = addresses(rig, "web")[Family.V4], addresses(rig, "db")[Family.V4]
    allowed = [(rig.places["web"], Packet(web, db, UDP, 53))]
    started = time.monotonic()
    with serve([(rig.places["db"], db, UDP, 53)]):
        assert attempt(allowed, 2)
        with rig.places["web"].enter():
            flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with flood:
            for number in range(20):
                for _ in range(100):
                    flood.sendto(b"?", (db, 1000))
                assert attempt(allowed, 2), f"round {number}"
    event = rig.event(web, db)
    select.select([rig.reader], [], [], 0.3)
    rig.reader.read()
    logged = sum(e.count for e in rig.denies.events() if e.destination.port == 1000)
    seconds = time.monotonic() - started
    assert event.reason is Reason.ISOLATED
    assert 50 <= logged <= 50 + DENY_LOG.rate * seconds + 1
    assert logged < 2000


async def test_a_group_that_somebody_else_reads(rig: Rig) -> None:
    with pytest.raises(NflogError, match="group 88 is read by another process"):
        NflogReader(DENY_LOG.group, 128, lambda _packets: None)
    rig.apply_policy(DENY)

    reader = DenyReader(DENY_LOG.group, rig.denies, Metrics(), retry=0.05)
    task = asyncio.create_task(reader.run())
    await until(lambda: reader.unavailable != NOT_YET)
    assert "another process" in str(reader.unavailable)
    rig.reader.close()
    await until(lambda: reader.unavailable is None)
    with rig.denies.follow() as followed:
        await asyncio.to_thread(rig.send, "tool", "db", TCP, 80)
        event = await asyncio.wait_for(followed.get(), PATIENCE)
    assert event.message == "isolated by NetworkPolicy shop/deny (ingress); none of its rules allows it"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_rules_that_log_are_found_again_as_they_were_written(rig: Rig) -> None:
    rules = (ClusterRule(RuleAction.DENY, (PodPeer(EVERYTHING, None),), (Port(TCP, 1),)),)
    rig.apply_policy(DENY)
    rig.apply_policy(
        ClusterPolicy(PolicyKind.CLUSTER, "g", Tier.ADMIN, 1, PodPeer(EVERYTHING, None), rules, rules)
    )
    assert rig.kernel.differences() == []
    assert rig.kernel.apply(sweep=True) == Report()
    with Kernel(tuple(Family), rig.backend) as again:
        again.load()
        assert [rule for rule in again.rules(Family.V4, "filter", "FELIX-D") if isinstance(rule.target, Log)]


def test_rules_are_tried_without_a_trace(backend: Backend) -> None:
    before = run(f"iptables-{backend}-save"), run(f"ip6tables-{backend}-save")
    assert refusal(tuple(Family), backend, DENY_LOG.rule(SOURCE_DROP)) is None
    reason = refusal(tuple(Family), backend, RuleSpec((), Jump("NOSUCHTARGET")))
    assert reason is not None
    assert "NOSUCHTARGET" in reason
    assert (run(f"iptables-{backend}-save"), run(f"ip6tables-{backend}-save")) == before
