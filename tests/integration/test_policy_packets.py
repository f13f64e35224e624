"""The whole way from policy to packet: engine, plan and kernel on one node, judged by the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from felix_py.dataplane import sysctl
from felix_py.records import Backend
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Family,
    IPBlock,
    Namespace,
    NetworkPolicy,
    NodePeer,
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
from tests.support import clusters
from tests.support.builders import labelled, policy
from tests.support.isolate import NetworkNamespace, run
from tests.support.policy_node import WORLD, PolicyNode
from tests.support.thorough import examples
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.fixture(params=list(Backend), ids=str)
def node(request: pytest.FixtureRequest, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[PolicyNode]:
    sysctl.set_up_host(tuple(Family))
    node = PolicyNode(request.param, make_netns)
    for name, app in (("web", "web"), ("api", "api"), ("db", "db")):
        node.add_pod("shop", name, app=app)
    node.add_pod("dev", "tool", app="tool")
    yield node
    node.kernel.close()


POLICIES = [
    policy("deny-all", ingress=(), egress=()),
    policy(
        "web-to-api",
        labelled(app="api"),
        ingress=(PolicyRule((PodPeer(None, labelled(app="web")),), (Port(TCP, 8080), Port(UDP, 53))),),
    ),
    policy(
        "web-out",
        labelled(app="web"),
        egress=(PolicyRule((PodPeer(None, labelled(app="api")),), (Port(TCP, 8000, 9000), Port(UDP, "dns"))),),
    ),
    policy(
        "db-from-dev-and-near",
        labelled(app="db"),
        ingress=(
            PolicyRule((PodPeer(labelled(team="dev"), None),), (Port(TCP, "http"),)),
            PolicyRule((IPBlock("0.0.0.0/0", ("10.0.0.0/8",)), IPBlock("2001:db8::/64")), (Port(TCP, 80),)),
        ),
        egress=(PolicyRule((IPBlock("0.0.0.0/0"), IPBlock("::/0", ("fd00::/8",)))),),
    ),
]


def test_packets_meet_the_oracles_verdict(node: PolicyNode) -> None:
    node.apply()
    node.check()
    for count in range(1, len(POLICIES) + 1):
        node.facts.upsert(POLICIES[count - 1])
        node.apply()
        node.check(*POLICIES[:count])
    for gone in (0, 2):
        node.facts.delete(POLICIES[gone])
    node.apply()
    node.check(POLICIES[1], POLICIES[3])


def tiered(name: str, tier: Tier, priority: int, subject: PodPeer, **rules: Any) -> ClusterPolicy:
    return ClusterPolicy(PolicyKind.CLUSTER, name, tier, priority, subject, **rules)


ACCEPT, DENY, PASS = RuleAction
ALL = PodPeer(EVERYTHING, None)
SHOP, DEV = PodPeer(labelled(team="shop"), None), PodPeer(labelled(team="dev"), None)
WEB, API = (PodPeer(labelled(team="shop"), labelled(app=app)) for app in ("web", "api"))

TIERED = [
    # Nobody but dev reaches the shop's databases, whatever its own policies say; what the api asks is theirs.
    tiered(
        "guard",
        Tier.ADMIN,
        10,
        PodPeer(labelled(team="shop"), labelled(app="db")),
        ingress=(
            ClusterRule(ACCEPT, (DEV,), (Port(TCP, "http"),), "monitoring"),
            ClusterRule(PASS, (API,)),
            ClusterRule(DENY, (SHOP, ALL), (Port(TCP), Port(UDP, 1, 60))),
        ),
    ),
    # Tried later: what was passed or decided does not come here.
    tiered("late", Tier.ADMIN, 20, SHOP, ingress=(ClusterRule(DENY, (API,), (Port(TCP, 8080),)),)),
    tiered(
        "outward",
        Tier.ADMIN,
        5,
        ALL,
        egress=(
            ClusterRule(DENY, (NodePeer(labelled(zone="z")),), (Port(UDP, 53),)),
            ClusterRule(PASS, (IPBlock("192.0.2.0/24"), IPBlock("2001:db8::/64"))),
            ClusterRule(ACCEPT, (API,), (Port(TCP, 80, 90),)),
        ),
    ),
    tiered(
        "base",
        Tier.BASELINE,
        0,
        ALL,
        ingress=(ClusterRule(ACCEPT, (WEB,)), ClusterRule(DENY, None)),
        egress=(ClusterRule(DENY, (IPBlock("192.0.2.0/24"), IPBlock("2001:db8::/64")), (Port(TCP, 80),)),),
    ),
]


def test_packets_of_tiers_meet_the_oracles_verdict(node: PolicyNode) -> None:
    known: list[NetworkPolicy | ClusterPolicy] = []
    policies: list[NetworkPolicy | ClusterPolicy] = [*TIERED, POLICIES[1], POLICIES[0]]
    for one in policies:
        node.facts.upsert(one)
        known.append(one)
        node.apply()
        node.check(*known)
    # Another order of the same policies.
    known[0], known[1] = replace(TIERED[0], priority=20), replace(TIERED[1], priority=10)
    for one in known[:2]:
        node.facts.upsert(one)
    node.apply()
    node.check(*known)


def test_packets_of_random_policies_meet_the_oracles_verdict(node: PolicyNode) -> None:
    """A few of the random policies of the property tests, with pods that they may mean."""
    node.namespaces += [Namespace("a", (("app", "x"),)), Namespace("b", (("tier", "y"),))]
    for namespace in node.namespaces[2:]:
        node.facts.upsert(namespace)
    node.add_pod("a", "one", app="x")
    node.add_pod("b", "two", tier="y")

    @settings(max_examples=examples(4), deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(found=st.lists(st.one_of(clusters.policies, clusters.cluster_policies), min_size=3, max_size=5))
    def check(found: list[NetworkPolicy | ClusterPolicy]) -> None:
        chosen = {one.ref: one for one in found}
        for one in chosen.values():
            node.facts.upsert(one)
        node.apply()
        node.check(*chosen.values())
        for ref in chosen:
            node.facts.told.remove(NetworkPolicy, ref)

    check()


def test_a_pod_that_joins_a_class_causes_no_iptables_write(node: PolicyNode) -> None:
    for one in POLICIES:
        node.facts.upsert(one)
    node.apply()
    node.add_pod("shop", "web-2", app="web")
    report = node.apply()
    assert report.transactions == 0
    assert report.writes > 0
    node.check(*POLICIES)


def test_a_packet_with_anothers_source_address_is_dropped(node: PolicyNode) -> None:
    node.apply()
    tool, web = node.places["tool"], node.pods["web"]
    for family, stolen in zip(Family, web.addresses, strict=True):
        nodad = ["nodad"] if family is Family.V6 else []
        tool.run("ip", "addr", "add", f"{stolen}/{family.bits}", "dev", "eth0", *nodad)
        packet = Packet(stolen, WORLD[family], UDP, 53)
        with serve([(node.world, WORLD[family], UDP, 53)]):
            assert attempt([(tool, packet)]) == set()
        table = "iptables" if family is Family.V4 else "ip6tables"
        backend = node.kernel.backend.value
        saved = run(f"{table}-{backend}", "-t", "raw", "-vxnL", "FELIX-SOURCE")
        assert any(int(line.split()[0]) > 0 for line in saved.splitlines() if "DROP" in line)
