"""A pod that reaches itself: by its own address, and through a service (network-policy-api: "hairpin")."""

from __future__ import annotations

import pytest

from policy.engine.interpret import allowed
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Family,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Packet,
    Pod,
    PodPeer,
    PolicyKind,
    Protocol,
    RuleAction,
    Tier,
)
from policy.oracle.evaluate import Snapshot, verdict
from policy.selectors import EVERYTHING
from tests.support.told import ToldEngine

ALL = PodPeer(EVERYTHING, None)
NAMESPACE = Namespace("shop")
POD = Pod("shop", "web", "u", "node", (), ("10.1.0.2",))
OTHER = Pod("shop", "api", "u", "node", (), ("10.1.0.3",))


def cluster(action: RuleAction, tier: Tier, direction: str) -> ClusterPolicy:
    rules = (ClusterRule(action, (ALL,)),)
    into, out = (rules, ()) if direction == "ingress" else ((), rules)
    return ClusterPolicy(PolicyKind.CLUSTER, f"{tier}-{action}", tier, 1, ALL, into, out)


ISOLATED = NetworkPolicy("shop", "deny", EVERYTHING, ingress=(), egress=())
CASES: dict[str, tuple[list[NetworkPolicy | ClusterPolicy], bool]] = {
    "nothing": ([], True),
    "NetworkPolicy": ([ISOLATED], True),
    "Admin Deny in": ([cluster(RuleAction.DENY, Tier.ADMIN, "ingress")], False),
    "Admin Deny out": ([cluster(RuleAction.DENY, Tier.ADMIN, "egress")], False),
    "Admin Deny before NetworkPolicy": ([cluster(RuleAction.DENY, Tier.ADMIN, "egress"), ISOLATED], False),
    "Admin Pass, NetworkPolicy": ([cluster(RuleAction.PASS, Tier.ADMIN, "ingress"), ISOLATED], True),
    "Admin Accept": ([cluster(RuleAction.ACCEPT, Tier.ADMIN, "ingress"), ISOLATED], True),
    "Baseline Deny": ([cluster(RuleAction.DENY, Tier.BASELINE, "ingress")], False),
    "Baseline Deny behind NetworkPolicy": ([cluster(RuleAction.DENY, Tier.BASELINE, "ingress"), ISOLATED], True),
}


@pytest.mark.parametrize("case", CASES)
def test_through_a_service(case: str) -> None:
    policies, passes = CASES[case]
    snapshot = Snapshot([NAMESPACE], [POD, OTHER], policies)
    engine = ToldEngine((Family.V4,))
    engine.upsert(NAMESPACE)
    for pod in (POD, OTHER):
        engine.upsert(pod)
        engine.lease(LocalEndpoint(pod.namespace, pod.name, pod.addresses))
    for policy in policies:
        engine.upsert(policy)
    program = engine.program(Family.V4)
    direct = Packet("10.1.0.2", "10.1.0.2", Protocol.TCP, 80)
    hairpin = Packet("10.1.0.2", "10.1.0.2", Protocol.TCP, 80, by_service=True)
    assert (verdict(snapshot, direct).allowed, allowed(program, direct)) == (True, True)
    assert (verdict(snapshot, hairpin).allowed, allowed(program, hairpin)) == (passes, passes)
    # That a pod may reach itself allows nobody else anything.
    other = Packet("10.1.0.3", "10.1.0.2", Protocol.TCP, 80)
    assert verdict(snapshot, other).allowed is allowed(program, other)
