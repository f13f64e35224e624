"""A node with three pods, policies of all tiers and all that the agent writes for them: in this namespace."""

from __future__ import annotations

from collections.abc import Iterable

from felix_py.dataplane import sysctl
from felix_py.dataplane.kernel import Kernel
from felix_py.datastore.fetch import Fetched
from felix_py.desired.deny_log import DenyLog
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.diagnose.agent_says import AgentSays, Configuration
from felix_py.diagnose.intended import Settings
from felix_py.diagnose.live import Live
from felix_py.diagnose.verify import Findings, Look, verify
from felix_py.records import Backend, NodeRecord, endpoints_of
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Family,
    IPBlock,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    RuleAction,
    Selector,
    Tier,
)
from tests.support.builders import labelled, lease
from tests.support.isolate import run, veth
from tests.support.told import ToldFacts

TCP, UDP = Protocol.TCP, Protocol.UDP
NODE = {Family.V4: "192.0.2.1", Family.V6: "2001:db8::1"}
OTHER = {Family.V4: "192.0.2.9", Family.V6: "2001:db8::9"}
LEARNED = {"10.2.0.0/24": (OTHER[Family.V4],), "fd00:2::/64": (OTHER[Family.V6],)}


def pod(namespace: str, name: str, number: int, node: str = "node1", **labels: str) -> Pod:
    place = 1 if node == "node1" else 2
    return Pod(
        namespace,
        name,
        "u",
        node,
        tuple(sorted(labels.items())),
        (f"10.{place}.0.{number}", f"fd00:{place}::{number:x}"),
        (NamedPort("http", TCP, 80), NamedPort("dns", UDP, 53)),
    )


WEB, DB, TOOL = (
    pod("shop", "web-1", 2, app="web"),
    pod("shop", "db-0", 3, app="db"),
    pod("dev", "tool", 4, app="tool"),
)
FAR = pod("shop", "web-2", 2, "node2", app="web")

POLICIES: list[NetworkPolicy | ClusterPolicy] = [
    NetworkPolicy("shop", "deny-ingress", Selector(), ingress=()),
    NetworkPolicy(
        "shop",
        "db",
        labelled(app="db"),
        ingress=(
            PolicyRule((PodPeer(None, labelled(app="web")),), (Port(TCP, 5432), Port(TCP, 8000, 8010))),
            PolicyRule((IPBlock("198.51.100.0/24", ("198.51.100.0/28",)),), (Port(TCP, "http"),)),
        ),
        egress=(PolicyRule(None, (Port(UDP, "dns"),)),),
    ),
    ClusterPolicy(
        PolicyKind.CLUSTER,
        "guard",
        Tier.ADMIN,
        10,
        PodPeer(labelled(team="shop"), None),
        ingress=(
            ClusterRule(RuleAction.PASS, (PodPeer(labelled(team="shop"), None),), None, "own"),
            ClusterRule(RuleAction.DENY, (PodPeer(labelled(team="dev"), None),), (Port(TCP, 22),)),
        ),
    ),
    ClusterPolicy(
        PolicyKind.CLUSTER,
        "base",
        Tier.BASELINE,
        0,
        PodPeer(labelled(team="dev"), None),
        ingress=(ClusterRule(RuleAction.DENY, (PodPeer(Selector(), None),)),),
    ),
]


class SmallNode:
    """node1 of a cluster of two. ``cluster`` is what the API server has; nothing of it is in the kernel until
    :meth:`apply`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.options = StaticOptions(Marks.from_mask(0xFFFF0000), deny_log=DenyLog(group=88, rate=10))
        self.cluster = Fetched(
            pods=[WEB, DB, TOOL, FAR],
            namespaces=[Namespace("shop", (("team", "shop"),)), Namespace("dev", (("team", "dev"),))],
            policies=list(POLICIES),
            nodes=[
                NodeRecord("node1", "", tuple(NODE.values()), ("10.1.0.0/24", "fd00:1::/64")),
                NodeRecord("node2", "", tuple(OTHER.values()), ("10.2.0.0/24", "fd00:2::/64")),
            ],
        )
        self.leases = [lease(one) for one in (WEB, DB, TOOL)]
        self.cluster.endpoints = endpoints_of(self.leases)
        self.agent_answers = True
        self.service_drops: tuple[str, ...] | None = None
        sysctl.set_up_host(tuple(Family))
        self._make_interfaces()

    def _make_interfaces(self) -> None:
        for number, held in enumerate(self.leases):
            veth(held.interface, f"pod{number}")
        veth("up0", "tor0", f"{NODE[Family.V4]}/24", f"{NODE[Family.V6]}/64")

    def apply(self) -> None:
        """Do what the agent does at its start."""
        facts = ToldFacts("node1")
        for record in (
            *self.cluster.nodes,
            *self.cluster.namespaces,
            *self.cluster.policies,
            *self.cluster.pods,
        ):
            facts.upsert(record)
        for held in self.leases:
            facts.attach(held)
        facts.learned(LEARNED)
        planner = Planner(tuple(Family), self.options, {})
        facts.collect(planner)
        with Kernel(tuple(Family), self.backend) as kernel:
            kernel.load()
            kernel.update(planner.take())
            assert kernel.apply().failures == ()
            kernel.update(planner.confirm())
            assert kernel.apply(sweep=True).failures == ()

    def looked_at(self) -> Look:
        says = AgentSays(
            "node1",
            Configuration(self.backend, tuple(Family), (), self.options),
            learned=dict(LEARNED),
            service_drops=self.service_drops,
        )
        return Look(self.cluster, tuple(self.leases), says if self.agent_answers else None)

    def verify(self, between: Iterable[str] = ()) -> Findings:
        """``between``: commands to run between the two looks."""

        def pause(_seconds: float) -> None:
            for command in between:
                run(*command.split())

        settings = Settings("node1", tuple(Family), (), self.options)
        return verify(settings, self.looked_at, lambda: Live(self.backend), pause)
