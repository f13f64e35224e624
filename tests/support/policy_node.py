"""Engine, plan and kernel together on one node, with pods that send real packets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from felix_py.dataplane.kernel import Kernel
from felix_py.dataplane.links import Links, PodLink, random_mac
from felix_py.desired.deny_log import DenyLog
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.layout import interface_name
from felix_py.notices import NoticeKind
from felix_py.observe.chain_names import ChainNames
from felix_py.pending import Pending
from felix_py.records import Backend, NodeRecord, Report
from policy import model as policy_model
from policy.ir import Delta
from policy.model import (
    ClusterPolicy,
    Family,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Packet,
    Pod,
    PolicyRef,
    Protocol,
)
from policy.oracle.evaluate import Snapshot, verdict
from tests.support.builders import lease
from tests.support.isolate import NetworkNamespace, run
from tests.support.told import ToldFacts
from tests.support.traffic import attempt, serve

TCP, UDP = Protocol.TCP, Protocol.UDP
NODE = {Family.V4: "192.0.2.1", Family.V6: "2001:db8::1"}
WORLD = {Family.V4: "192.0.2.9", Family.V6: "2001:db8::9"}
OTHER_NODE = policy_model.Node("other", (("zone", "z"),), tuple(WORLD.values()))
PORTS = ((TCP, 80), (TCP, 8080), (UDP, 53))
MARKS = Marks.from_mask(0xFFFF0000)
DENY_LOG = DenyLog(88, 10)
_CHANCES = 10


class PolicyNode:
    """One node in the test's namespace, its pods in others, and a machine outside. It logs what it denies."""

    def __init__(self, backend: Backend, make: Callable[[str], NetworkNamespace], **settings: Any) -> None:
        """``settings``: other values of StaticOptions."""
        self.backend = backend
        self._make = make
        self.kernel = Kernel(tuple(Family), backend)
        self.kernel.load()
        options = StaticOptions(MARKS, nat_outgoing=False, deny_log=DENY_LOG)
        self.planner = Planner(tuple(Family), replace(options, **settings), {})
        self.pending = Pending()
        self.on_policy: list[Callable[[Delta], None]] = []
        self.told: list[tuple[NoticeKind, Mapping[str, str]]] = []
        self.facts = ToldFacts(
            "node",
            changed=self.pending.note,
            tell=lambda *notice: self.told.append(notice),
            on_policy=self.on_policy,
        )
        self.chain_names = ChainNames(self.facts.engine.policies_using)
        self.on_policy.append(self.chain_names.note)
        self.facts.upsert(NodeRecord("node", "", tuple(NODE.values()), ("10.1.0.0/24", "fd00:1::/64")))
        self.facts.upsert(OTHER_NODE)
        self.pods: dict[str, Pod] = {}
        self.policies: dict[PolicyRef, NetworkPolicy | ClusterPolicy] = {}
        self.places: dict[str, NetworkNamespace] = {}
        self.namespaces = [Namespace("shop", (("team", "shop"),)), Namespace("dev", (("team", "dev"),))]
        for namespace in self.namespaces:
            self.facts.upsert(namespace)
        self.world = make("world")
        run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", self.world.name)
        run("ip", "link", "set", "up0", "up")
        self.world.run("ip", "link", "set", "eth0", "up")
        for family, length in ((Family.V4, 24), (Family.V6, 64)):
            nodad = ["nodad"] if family is Family.V6 else []
            run("ip", "addr", "add", f"{NODE[family]}/{length}", "dev", "up0", *nodad)
            self.world.run("ip", "addr", "add", f"{WORLD[family]}/{length}", "dev", "eth0", *nodad)
            self.world.run("ip", f"-{family}", "route", "add", "default", "via", NODE[family])

    def add_pod(self, namespace: str, name: str, **labels: str) -> None:
        number = len(self.pods) + 2
        place = self._make(name)
        addresses = {Family.V4: f"10.1.0.{number}", Family.V6: f"fd00:1::{number:x}"}
        host = interface_name(name, "eth0")
        with Links() as links:
            links.create(PodLink(host, place.path, "eth0", addresses, random_mac(), 1500))
        named = (NamedPort("http", TCP, 80), NamedPort("dns", UDP, 53))
        pod = Pod(namespace, name, "u", "node", tuple(sorted(labels.items())), tuple(addresses.values()), named)
        self.facts.upsert(pod)
        self.facts.attach(lease(pod, created=float(number)))
        self.pods[name], self.places[name] = pod, place

    def address(self, pod: str, family: Family) -> str:
        """A pod's address of a family."""
        return next(a for a in self.pods[pod].addresses if (":" in a) is (family is Family.V6))

    def apply_policy(self, policy: NetworkPolicy | ClusterPolicy) -> Report:
        self.policies[policy.ref] = policy
        self.facts.upsert(policy)
        return self.apply()

    def apply(self) -> Report:
        self.facts.collect(self.planner)
        self.kernel.update(self.planner.take())
        first = self.kernel.apply()
        assert first.failures == ()
        self.kernel.update(self.planner.confirm())
        second = self.kernel.apply(sweep=True)
        assert second.failures == ()
        return first + second

    def check(self, *policies: NetworkPolicy | ClusterPolicy) -> None:
        """Every pod and the world to every pod and the world, on every port, in both families."""
        snapshot = Snapshot(self.namespaces, self.pods.values(), policies, [OTHER_NODE])
        ends = [(self.places[name], pod.addresses) for name, pod in self.pods.items()]
        ends.append((self.world, tuple(WORLD.values())))
        places = [(p, a, protocol, port) for p, addresses in ends for a in addresses for protocol, port in PORTS]
        tries = [
            (place, Packet(source, destination, protocol, port))
            for place, sources in ends
            for _, destinations in ends
            for source, destination in zip(sources, destinations, strict=True)
            for protocol, port in PORTS
        ]
        expected = {packet for _, packet in tries if verdict(snapshot, packet).allowed}
        with serve(places):
            answered = attempt(tries)
            # A new interface takes a moment until it has a carrier: what should pass gets further chances.
            for _ in range(_CHANCES):
                if missing := [(place, packet) for place, packet in tries if packet in expected - answered]:
                    answered |= attempt(missing, 1)
        told = f"open: {sorted(map(str, answered - expected))}, closed: {sorted(map(str, expected - answered))}"
        assert answered == expected, told


class LiveView:
    """The View of what a node's test has told it."""

    def __init__(self, node: PolicyNode) -> None:
        self._node = node

    def _now(self) -> Snapshot:
        node = self._node
        return Snapshot(node.namespaces, node.pods.values(), node.policies.values(), [OTHER_NODE])

    def namespace(self, name: str) -> Namespace | None:
        return self._now().namespace(name)

    def pod_at(self, address: str) -> Pod | None:
        return self._now().pod_at(address)

    def nodes(self) -> Iterable[policy_model.Node]:
        return self._now().nodes()

    def network_policies(self, namespace: str) -> Iterable[NetworkPolicy]:
        return self._now().network_policies(namespace)

    def cluster_policies(self) -> Iterable[ClusterPolicy]:
        return self._now().cluster_policies()
