"""The cluster-scoped policies: what is made of each of their parts."""

from __future__ import annotations

from typing import Any

import pytest

from policy.model import (
    ClusterPolicy,
    ClusterRule,
    IPBlock,
    NodePeer,
    Operator,
    PodPeer,
    PolicyKind,
    Port,
    Protocol,
    Requirement,
    RuleAction,
    Selector,
    Tier,
)
from policy.parse_cluster import parse_baseline_admin_policy, parse_cluster_policy
from tests.support.builders import labelled
from tests.support.cluster_objects import (
    ACCEPT_NOTHING,
    ALL,
    DENY_ALL,
    META,
    NAMESPACES,
    admin,
    baseline,
    cluster,
    rule,
)

ACCEPT, DENY, PASS = RuleAction.ACCEPT, RuleAction.DENY, RuleAction.PASS


# --- order: tiers, priorities, rules in order, actions ---------------------------------------------------------


@pytest.mark.parametrize(("text", "tier"), [("Admin", Tier.ADMIN), ("Baseline", Tier.BASELINE)])
@pytest.mark.parametrize("priority", [0, 1, 1000])
def test_tier_and_priority(text: str, tier: Tier, priority: int) -> None:
    policy = cluster(tier=text, priority=priority)
    assert (policy.kind, policy.name, policy.uid) == (PolicyKind.CLUSTER, "p", "u")
    assert (policy.tier, policy.priority, policy.problems) == (tier, priority, ())


def test_lower_priorities_come_first() -> None:
    policies = [cluster(priority=number) for number in (1000, 0, 7)]
    assert [p.priority for p in sorted(policies, key=lambda p: p.precedence)] == [0, 7, 1000]


def test_rules_keep_their_order_and_their_names() -> None:
    actions = [rule("Pass", name="monitoring"), rule("Accept"), rule("Deny", name="the rest")]
    policy = cluster(
        ingress=[{**one, "from": [NAMESPACES]} for one in actions],
        egress=[{**one, "to": [NAMESPACES]} for one in reversed(actions)],
    )
    rules = (
        ClusterRule(PASS, (ALL,), None, "monitoring"),
        ClusterRule(ACCEPT, (ALL,)),
        ClusterRule(DENY, (ALL,), None, "the rest"),
    )
    assert (policy.ingress, policy.egress, policy.problems) == (rules, rules[::-1], ())


def test_no_rules_in_a_direction_say_nothing_of_it() -> None:
    assert (cluster(ingress=[]).ingress, cluster(ingress=None).ingress, cluster().egress) == ((), (), ())


# --- subjects and peers ---------------------------------------------------------------------------------------

TEAM = {"matchLabels": {"team": "a"}}
WEB = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"namespaces": {}}, ALL),
        ({"namespaces": TEAM}, PodPeer(labelled(team="a"), None)),
        ({"namespaces": TEAM, "pods": None}, PodPeer(labelled(team="a"), None)),
        ({"pods": {"namespaceSelector": {}, "podSelector": {}}}, PodPeer(Selector(), Selector())),
        (
            {"pods": {"namespaceSelector": TEAM, "podSelector": WEB}},
            PodPeer(labelled(team="a"), labelled(app="web")),
        ),
    ],
)
def test_namespaces_or_pods_as_subject_and_as_peers(written: Any, meant: PodPeer) -> None:
    for parsed in (
        cluster(subject=written, ingress=[rule(**{"from": [written]})], egress=[rule(to=[written])]),
        admin(subject=written, ingress=[rule(**{"from": [written]})], egress=[rule(to=[written])]),
        baseline(subject=written, ingress=[rule(**{"from": [written]})], egress=[rule(to=[written])]),
    ):
        assert (parsed.subject, parsed.problems) == (meant, ())
        assert parsed.ingress == parsed.egress == (ClusterRule(DENY, (meant,)),)


def test_v1alpha2_takes_a_missing_namespace_selector_as_all_namespaces_and_v1alpha1_demands_one() -> None:
    pods = {"pods": {"podSelector": WEB}}
    assert cluster(subject=pods) == cluster(subject={"pods": {"podSelector": WEB, "namespaceSelector": {}}})
    problem = "spec.subject.pods.namespaceSelector: must be an object, not null"
    assert admin(subject=pods).problems[0] == problem
    assert baseline(subject=pods).problems[0] == problem


@pytest.mark.parametrize("parse", [cluster, admin, baseline])
def test_egress_adds_networks_and_nodes(parse: Any) -> None:
    peers = [
        {"networks": ["10.1.2.3/8", "FD00::/8", "0.0.0.0/0"]},
        {"nodes": {}},
        {"nodes": {"matchExpressions": [{"key": "control-plane", "operator": "Exists"}]}},
        {"namespaces": {}},
    ]
    policy = parse(egress=[rule(to=peers)])
    assert policy.problems == ()
    assert policy.egress == (
        ClusterRule(
            DENY,
            (
                IPBlock("10.0.0.0/8"),
                IPBlock("fd00::/8"),
                IPBlock("0.0.0.0/0"),
                NodePeer(Selector()),
                NodePeer(Selector((Requirement("control-plane", Operator.EXISTS),))),
                ALL,
            ),
        ),
    )


@pytest.mark.parametrize("peer", [{"networks": ["10.0.0.0/8"]}, {"nodes": {}}, {"domainNames": ["a.example"]}])
@pytest.mark.parametrize("parse", [cluster, admin, baseline])
def test_ingress_has_only_namespaces_and_pods(parse: Any, peer: Any) -> None:
    policy = parse(ingress=[rule(**{"from": [NAMESPACES, peer]})])
    assert policy.problems == (
        f"spec.ingress[0].from[1]: unknown field '{next(iter(peer))}'",
        "spec.ingress[0]: as a part of it is not understood, it denies everything",
    )
    assert policy.ingress == (DENY_ALL,)


@pytest.mark.parametrize("parse", [cluster, admin])
def test_domain_names_fail_closed_as_dns_is_not_watched(parse: Any) -> None:
    accept = "Accept" if parse is cluster else "Allow"
    names = {"domainNames": ["*.example.org"]}
    policy = parse(egress=[rule(accept, to=[names]), rule(accept, to=[NAMESPACES]), rule("Deny", to=[names])])
    why = "felix-py does not watch DNS, so it cannot match domain names"
    assert policy.problems == (
        f"spec.egress[0].to[0].domainNames: {why}",
        "spec.egress[0]: as a part of it is not understood, it accepts nothing",
        f"spec.egress[2].to[0].domainNames: {why}",
        "spec.egress[2]: as a part of it is not understood, it denies everything",
    )
    assert policy.egress == (ACCEPT_NOTHING, ClusterRule(ACCEPT, (ALL,)), DENY_ALL)


# --- protocols and ports --------------------------------------------------------------------------------------


def test_v1alpha2_protocols() -> None:
    protocols = [
        {"tcp": {"destinationPort": {"number": 80}}},
        {"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}},
        {"sctp": {"destinationPort": {"number": 65535}}},
        {"destinationNamedPort": "web"},
    ]
    policy = cluster(egress=[rule(to=[NAMESPACES], protocols=protocols)])
    assert policy.problems == ()
    assert policy.egress[0].ports == (
        Port(Protocol.TCP, 80),
        Port(Protocol.UDP, 1, 65535),
        Port(Protocol.SCTP, 65535),
        *(Port(protocol, "web") for protocol in Protocol),
    )


@pytest.mark.parametrize("parse", [admin, baseline])
def test_v1alpha1_ports(parse: Any) -> None:
    ports = [
        {"portNumber": {"port": 80}},
        {"portNumber": {"port": 53, "protocol": "UDP"}},
        {"portRange": {"start": 1, "end": 2}},
        {"portRange": {"start": 3, "end": 4, "protocol": "SCTP"}},
        {"namedPort": "web"},
    ]
    policy = parse(ingress=[rule(**{"from": [NAMESPACES]}, ports=ports)])
    assert policy.problems == ()
    assert policy.ingress[0].ports == (
        Port(Protocol.TCP, 80),
        Port(Protocol.UDP, 53),
        Port(Protocol.TCP, 1, 2),
        Port(Protocol.SCTP, 3, 4),
        *(Port(protocol, "web") for protocol in Protocol),
    )


# --- the head -------------------------------------------------------------------------------------------------

RULES: dict[str, Any] = {
    "ingress": [rule("Accept", **{"from": [NAMESPACES]}), rule("Deny", **{"from": [{"namespaces": TEAM}]})],
    "egress": [rule("Pass", to=[{"nodes": {}}], name="n"), rule("Accept", to=[NAMESPACES])],
}
CLOSED = (
    (ACCEPT_NOTHING, ClusterRule(DENY, (PodPeer(labelled(team="a"), None),))),
    (ClusterRule(DENY, (NodePeer(Selector()),), None, "n"), ACCEPT_NOTHING),
)
"""What becomes of RULES where the head is not understood."""


def check_head(policy: ClusterPolicy, *problems: str) -> None:
    closed = "spec: as its head is not understood, it accepts nothing, and its Pass rules deny"
    assert policy.problems == (*problems, closed)
    assert (policy.ingress, policy.egress) == CLOSED


@pytest.mark.parametrize(
    ("tier", "problem"),
    [
        ("NetworkPolicy", "unknown tier 'NetworkPolicy'"),
        ("admin", "unknown tier 'admin'"),
        ("Admin\n", "unknown tier 'Admin\\n'"),
        (None, "must be a string, not null"),
        (1, "must be a string, not 1"),
    ],
)
def test_a_tier_that_is_not_understood_is_admin(tier: Any, problem: str) -> None:
    policy = cluster(tier=tier, **RULES)
    check_head(policy, f"spec.tier: {problem}")
    assert (policy.tier, policy.priority) == (Tier.ADMIN, 10)


@pytest.mark.parametrize(
    ("priority", "problem"),
    [
        (-1, "-1 is not between 0 and 1000"),
        (1001, "1001 is not between 0 and 1000"),
        (10**400, "a huge number is not between 0 and 1000"),
        (None, "must be a number, not null"),
        ("10", "must be a number, not '10'"),
        (1.5, "must be a number, not 1.5"),
        (True, "must be a number, not true"),
    ],
)
def test_a_priority_that_is_not_understood_is_the_first(priority: Any, problem: str) -> None:
    policy = cluster(tier="Baseline", priority=priority, **RULES)
    check_head(policy, f"spec.priority: {problem}")
    assert (policy.tier, policy.priority) == (Tier.BASELINE, 0)
    policy = admin(priority=priority)
    assert (policy.tier, policy.priority) == (Tier.ADMIN, 0)


def test_an_unknown_field_of_the_spec() -> None:
    policy = cluster(tier="Baseline", enforcement="audit", **RULES)
    check_head(policy, "spec: unknown field 'enforcement'")
    assert (policy.tier, policy.priority, policy.subject) == (Tier.BASELINE, 10, ALL)


SUBJECTS: list[tuple[Any, PodPeer, str]] = [
    (None, ALL, "spec.subject: must be an object, not null"),
    ("all", ALL, "spec.subject: must be an object, not 'all'"),
    ({}, ALL, "spec.subject: must have exactly one of namespaces, pods, not none"),
    (
        {"namespaces": TEAM, "pods": {"namespaceSelector": {}, "podSelector": WEB}},
        ALL,
        "spec.subject: must have exactly one of namespaces, pods, not namespaces and pods",
    ),
    ({"namespaces": TEAM, "nodes": {}}, ALL, "spec.subject: unknown field 'nodes'"),
    (
        {"namespaces": {"matchLabels": {"team": "a", "b": "-"}}},
        PodPeer(labelled(team="a"), None),
        "spec.subject.namespaces.matchLabels['b']: '-' is not a label value",
    ),
    (
        {"namespaces": {**TEAM, "matchExpressions": [{"key": "x", "operator": "Like", "values": ["y"]}]}},
        PodPeer(labelled(team="a"), None),
        "spec.subject.namespaces.matchExpressions[0].operator: unknown operator 'Like'",
    ),
    (
        {"namespaces": {"matchExpressions": [{"key": "x", "operator": "In", "values": ["ok", "-"]}]}},
        ALL,
        "spec.subject.namespaces.matchExpressions[0].values[1]: '-' is not a label value",
    ),
    (
        {"pods": {"namespaceSelector": TEAM}},
        PodPeer(labelled(team="a"), Selector()),
        "spec.subject.pods.podSelector: must be an object, not null",
    ),
    (
        {"pods": {"namespaceSelector": 1, "podSelector": WEB}},
        PodPeer(Selector(), labelled(app="web")),
        "spec.subject.pods.namespaceSelector: must be an object, not 1",
    ),
    (
        {"pods": {"namespaceSelector": TEAM, "podSelector": WEB, "serviceAccounts": {}}},
        PodPeer(labelled(team="a"), labelled(app="web")),
        "spec.subject.pods: unknown field 'serviceAccounts'",
    ),
    ({"pods": []}, ALL, "spec.subject.pods: must be an object, not a list"),
]


@pytest.mark.parametrize(("subject", "widened", "problem"), SUBJECTS)
def test_a_subject_widens_to_what_is_understood_of_it(subject: Any, widened: PodPeer, problem: str) -> None:
    policy = cluster(subject=subject, **RULES)
    check_head(policy, problem)
    assert policy.subject == widened


def test_a_rule_that_is_not_understood_in_a_policy_whose_head_is_not_understood() -> None:
    policy = cluster(tier="x", ingress=[rule("Accept", **{"from": [{}]}), rule("Pass", **{"from": [{}]})])
    assert policy.ingress == (ACCEPT_NOTHING, DENY_ALL)


@pytest.mark.parametrize("spec", ["x", [], 1, False])
def test_a_spec_that_is_none_denies_all(spec: Any) -> None:
    policy = parse_cluster_policy({"metadata": META, "spec": spec})
    assert (policy.tier, policy.priority, policy.subject) == (Tier.ADMIN, 0, ALL)
    assert policy.ingress == policy.egress == (DENY_ALL,)
    assert policy.problems[1] == "spec: as nothing of it is understood, everything is denied"


@pytest.mark.parametrize(
    "obj", [{"metadata": META}, {"metadata": META, "spec": None}, {"metadata": META, "spec": {}}]
)
def test_without_a_spec_there_are_no_rules(obj: Any) -> None:
    policy = parse_cluster_policy(obj)
    assert (policy.ingress, policy.egress) == ((), ())
    assert policy.problems


# --- the older kinds map onto the same tiers -------------------------------------------------------------------


def test_an_admin_network_policy_is_of_the_admin_tier() -> None:
    policy = admin(priority=3, ingress=[rule(a, **{"from": [NAMESPACES]}) for a in ("Allow", "Deny", "Pass")])
    assert (policy.kind, policy.tier, policy.priority) == (PolicyKind.ADMIN, Tier.ADMIN, 3)
    assert [one.action for one in policy.ingress] == [ACCEPT, DENY, PASS]
    assert policy.problems == ()


def test_a_baseline_admin_network_policy_is_the_last_of_the_baseline_tier() -> None:
    policy = baseline(egress=[rule("Allow", to=[NAMESPACES]), rule("Deny", to=[NAMESPACES])])
    assert (policy.kind, policy.tier, policy.problems) == (PolicyKind.BASELINE_ADMIN, Tier.BASELINE, ())
    assert [one.action for one in policy.egress] == [ACCEPT, DENY]
    assert policy.precedence > cluster(tier="Baseline", priority=1000).precedence


def test_a_baseline_admin_network_policy_knows_no_pass_no_priority_and_no_domain_names() -> None:
    policy = baseline(egress=[rule("Pass", to=[NAMESPACES])])
    assert policy.problems[0] == "spec.egress[0].action: unknown action 'Pass', known are Allow, Deny"
    assert policy.egress == (DENY_ALL,)
    assert baseline(priority=1).problems[0] == "spec: unknown field 'priority'"
    assert baseline(egress=[rule("Allow", to=[{"domainNames": ["a.b"]}])]).problems[0] == (
        "spec.egress[0].to[0]: unknown field 'domainNames'"
    )


def test_a_baseline_admin_network_policy_of_another_name_accepts_nothing() -> None:
    spec = {"subject": NAMESPACES, "ingress": [rule(a, **{"from": [NAMESPACES]}) for a in ("Allow", "Deny")]}
    policy = parse_baseline_admin_policy({"metadata": {"name": "mine"}, "spec": spec})
    assert policy.problems[0] == "metadata.name: must be 'default', not 'mine'"
    assert policy.ingress == (ACCEPT_NOTHING, ClusterRule(DENY, (ALL,)))


@pytest.mark.parametrize("parse", [admin, baseline])
def test_v1alpha1_takes_no_tier_and_no_protocols(parse: Any) -> None:
    assert parse(tier="Admin").problems[0] == "spec: unknown field 'tier'"
    policy = parse(
        egress=[rule("Deny", to=[NAMESPACES], protocols=[{"tcp": {"destinationPort": {"number": 1}}}])]
    )
    assert policy.problems[0] == "spec.egress[0]: unknown field 'protocols'"
