"""Rules of the cluster tiers of which a part is not understood: each part is named, and the rule fails closed."""

from __future__ import annotations

from typing import Any

import pytest

from policy.model import (
    ClusterPolicy,
    ClusterRule,
    RuleAction,
)
from tests.support.cluster_objects import ACCEPT_NOTHING, ALL, DENY_ALL, NAMESPACES, admin, cluster, rule

ACCEPT, DENY = RuleAction.ACCEPT, RuleAction.DENY

# --- a rule that is not understood: Accept matches nothing, Deny and Pass deny all -----------------------------


def check_fails_closed(policy: ClusterPolicy, problem: str) -> None:
    """Of an Accept, a Deny and a Pass rule in egress, all with the same problem."""
    closed = "as a part of it is not understood, it"
    assert policy.problems == (
        f"spec.egress[0].{problem}",
        f"spec.egress[0]: {closed} accepts nothing",
        f"spec.egress[1].{problem}",
        f"spec.egress[1]: {closed} denies everything",
        f"spec.egress[2].{problem}",
        f"spec.egress[2]: {closed} denies everything",
    )
    assert policy.egress == (ACCEPT_NOTHING, DENY_ALL, DENY_ALL)


ONE_OF = "must have exactly one of namespaces, pods, nodes, networks, domainNames, not "
PEERS: list[tuple[Any, str]] = [
    (None, ": must be an object, not null"),
    ("10.0.0.0/8", ": must be an object, not '10.0.0.0/8'"),
    ({}, f": {ONE_OF}none"),
    ({"namespaces": None, "pods": None}, f": {ONE_OF}none"),
    ({"namespaces": {}, "networks": ["10.0.0.0/8"]}, f": {ONE_OF}namespaces and networks"),
    ({"services": {}}, ": unknown field 'services'"),
    ({"namespaces": {}, "services": {}}, ": unknown field 'services'"),
    ({"namespaces": []}, ".namespaces: must be an object, not a list"),
    ({"namespaces": {"matchFields": []}}, ".namespaces: unknown field 'matchFields'"),
    (
        {"namespaces": {"matchLabels": {"a": "\x00"}}},
        ".namespaces.matchLabels['a']: '\\x00' is not a label value",
    ),
    ({"pods": {}}, ".pods.podSelector: must be an object, not null"),
    ({"pods": {"namespaceSelector": {}}}, ".pods.podSelector: must be an object, not null"),
    ({"pods": {"podSelector": {}, "namespaces": {}}}, ".pods: unknown field 'namespaces'"),
    ({"pods": {"podSelector": {"matchLabels": 1}}}, ".pods.podSelector.matchLabels: must be an object, not 1"),
    ({"nodes": "all"}, ".nodes: must be an object, not 'all'"),
    ({"nodes": {"matchLabels": {"": ""}}}, ".nodes.matchLabels: '' is not a label key"),
    ({"networks": []}, ".networks: must have at least one entry"),
    ({"networks": "10.0.0.0/8"}, ".networks: must be a list, not '10.0.0.0/8'"),
    ({"networks": ["10.0.0.0/8", "10.0.0.0"]}, ".networks[1]: '10.0.0.0' is not a CIDR"),
    ({"networks": ["::ffff:10.0.0.0/104"]}, ".networks[0]: '::ffff:10.0.0.0/104' is an IPv4-mapped IPv6 network"),
    ({"networks": ["10.0.0.0/8"] * 26}, ".networks: must have at most 25 entries, not 26"),
]


@pytest.mark.parametrize(("peer", "problem"), PEERS)
def test_a_peer_that_is_not_understood(peer: Any, problem: str) -> None:
    policy = cluster(egress=[rule(action, to=[NAMESPACES, peer]) for action in RuleAction])
    check_fails_closed(policy, f"to[1]{problem}")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "to: must have at least one entry"),
        ({"to": []}, "to: must have at least one entry"),
        ({"to": NAMESPACES}, "to: must be a list, not an object"),
        ({"to": [NAMESPACES] * 26}, "to: must have at most 25 entries, not 26"),
        ({"to": [NAMESPACES], "protocols": []}, "protocols: must have at least one entry, or be left out"),
        ({"to": [NAMESPACES], "protocols": {}}, "protocols: must be a list, not an object"),
        ({"to": [NAMESPACES], "protocols": [{}] * 5000}, "protocols: must have at most 25 entries, not 5000"),
    ],
)
def test_a_list_of_a_rule_that_is_not_understood(fields: Any, problem: str) -> None:
    check_fails_closed(cluster(egress=[rule(action, **fields) for action in RuleAction]), problem)


def test_an_unknown_field_of_a_rule() -> None:
    rules = [rule(action, to=[NAMESPACES], schedule="night") for action in RuleAction]
    problems = cluster(egress=rules).problems
    assert problems[::2] == tuple(f"spec.egress[{n}]: unknown field 'schedule'" for n in range(3))
    assert cluster(egress=rules).egress == (ACCEPT_NOTHING, DENY_ALL, DENY_ALL)


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ("Allow", ".action: unknown action 'Allow', known are Accept, Deny, Pass"),
        ("accept", ".action: unknown action 'accept', known are Accept, Deny, Pass"),
        ("Log", ".action: unknown action 'Log', known are Accept, Deny, Pass"),
        (None, ".action: must be a string, not null"),
        (["Accept"], ".action: must be a string, not a list"),
    ],
)
def test_an_unknown_action_denies(action: Any, problem: str) -> None:
    policy = cluster(ingress=[{"action": action, "from": [NAMESPACES]}])
    assert policy.problems[0] == f"spec.ingress[0]{problem}"
    assert policy.ingress == (DENY_ALL,)


@pytest.mark.parametrize("item", [None, "Accept", 1, []])
def test_a_rule_that_is_none_denies(item: Any) -> None:
    policy = cluster(ingress=[rule("Accept", **{"from": [NAMESPACES]}), item])
    assert policy.ingress == (ClusterRule(ACCEPT, (ALL,)), DENY_ALL)


@pytest.mark.parametrize("rules", ["Accept", {"action": "Accept"}, 7])
def test_a_list_of_rules_that_is_none_denies(rules: Any) -> None:
    policy = cluster(ingress=rules, egress=[rule("Accept", to=[NAMESPACES])])
    assert policy.problems[1] == "spec.ingress: as it is not understood, everything is denied"
    assert (policy.ingress, policy.egress) == ((DENY_ALL,), (ClusterRule(ACCEPT, (ALL,)),))


def test_more_rules_than_there_may_be() -> None:
    accept, deny = rule("Accept", to=[NAMESPACES]), rule("Deny", to=[{"networks": ["10.0.0.0/8"]}])
    kept = (ClusterRule(ACCEPT, (ALL,)),) * 25
    policy = cluster(egress=[accept] * 25)
    assert (policy.egress, policy.problems) == (kept, ())
    policy = cluster(egress=[accept] * 30)
    assert policy.egress == kept
    assert policy.problems == ("spec.egress: must have at most 25 entries, not 30: the others accept nothing",)
    policy = cluster(egress=[accept] * 25 + [deny, accept])
    assert policy.egress == (*kept, DENY_ALL)
    assert (
        policy.problems[1]
        == "spec.egress: as there are Deny or Pass rules behind [24], everything is denied there"
    )
    allow = rule("Allow", to=[NAMESPACES])
    assert len(admin(egress=[allow] * 100).egress) == 100
    assert admin(egress=[allow] * 100).problems == ()


def test_a_bad_name_of_a_rule_changes_nothing_else() -> None:
    named = {"to": [NAMESPACES]}
    policy = cluster(egress=[rule(**named, name="x" * 100), rule(**named, name="x" * 101), rule(**named, name=1)])
    assert policy.egress == (ClusterRule(DENY, (ALL,), None, "x" * 100), *(ClusterRule(DENY, (ALL,)),) * 2)
    assert [problem.partition(": ")[0] for problem in policy.problems] == [
        "spec.egress[1].name",
        "spec.egress[2].name",
    ]


def test_control_characters_in_a_rule_s_name_reach_nobody_s_terminal() -> None:
    policy = cluster(egress=[rule(to=[NAMESPACES], name="a\x1b[2J\nb")])
    assert policy.egress[0].name == "a\\x1b[2J\\nb"
    assert policy.problems == ()


# --- ports ----------------------------------------------------------------------------------------------------

V1ALPHA2_PORTS: list[tuple[Any, str]] = [
    (None, ": must be an object, not null"),
    ({}, ": must have exactly one of tcp, udp, sctp, destinationNamedPort, not none"),
    ({"tcp": None}, ": must have exactly one of tcp, udp, sctp, destinationNamedPort, not none"),
    ({"icmp": {"type": 8}}, ": unknown field 'icmp'"),
    (
        {"tcp": {"destinationPort": {"number": 1}}, "udp": {"destinationPort": {"number": 1}}},
        ": must have exactly one of tcp, udp, sctp, destinationNamedPort, not tcp and udp",
    ),
    ({"tcp": {}}, ".tcp: must have exactly one of destinationPort, not none"),
    ({"tcp": {"sourcePort": {"number": 1}}}, ".tcp: unknown field 'sourcePort'"),
    ({"tcp": 80}, ".tcp: must be an object, not 80"),
    ({"tcp": {"destinationPort": 80}}, ".tcp.destinationPort: must be an object, not 80"),
    (
        {"udp": {"destinationPort": {}}},
        ".udp.destinationPort: must have exactly one of number, range, not none",
    ),
    (
        {"udp": {"destinationPort": {"number": 1, "range": {"start": 1, "end": 2}}}},
        ".udp.destinationPort: must have exactly one of number, range, not number and range",
    ),
    (
        {"tcp": {"destinationPort": {"number": 0}}},
        ".tcp.destinationPort.number: 0 is not between 1 and 65535",
    ),
    (
        {"tcp": {"destinationPort": {"number": 65536}}},
        ".tcp.destinationPort.number: 65536 is not between 1 and 65535",
    ),
    (
        {"tcp": {"destinationPort": {"number": "80"}}},
        ".tcp.destinationPort.number: must be a number, not '80'",
    ),
    (
        {"tcp": {"destinationPort": {"number": True}}},
        ".tcp.destinationPort.number: must be a number, not true",
    ),
    (
        {"tcp": {"destinationPort": {"range": {"start": 2, "end": 1}}}},
        ".tcp.destinationPort.range: start 2 is not less than end 1",
    ),
    (
        {"tcp": {"destinationPort": {"range": {"start": 2, "end": 2}}}},
        ".tcp.destinationPort.range: start 2 is not less than end 2",
    ),
    (
        {"tcp": {"destinationPort": {"range": {"start": 2}}}},
        ".tcp.destinationPort.range.end: must be a number, not null",
    ),
    ({"destinationNamedPort": "80"}, ".destinationNamedPort: '80' is not a port name"),
    ({"destinationNamedPort": ""}, ".destinationNamedPort: '' is not a port name"),
    ({"destinationNamedPort": 80}, ".destinationNamedPort: must be a string, not 80"),
]


@pytest.mark.parametrize(("port", "problem"), V1ALPHA2_PORTS)
def test_a_v1alpha2_port_that_is_not_understood(port: Any, problem: str) -> None:
    good = {"tcp": {"destinationPort": {"number": 443}}}
    policy = cluster(egress=[rule(action, to=[NAMESPACES], protocols=[good, port]) for action in RuleAction])
    check_fails_closed(policy, f"protocols[1]{problem}")


V1ALPHA1_PORTS: list[tuple[Any, str]] = [
    ({}, ": must have exactly one of portNumber, portRange, namedPort, not none"),
    ({"port": 80}, ": unknown field 'port'"),
    (
        {"portNumber": {"port": 1}, "namedPort": "a"},
        ": must have exactly one of portNumber, portRange, namedPort, not portNumber and namedPort",
    ),
    ({"portNumber": {}}, ".portNumber.port: must be a number, not null"),
    ({"portNumber": {"port": 65536}}, ".portNumber.port: 65536 is not between 1 and 65535"),
    ({"portNumber": {"port": 1, "protocol": "ICMP"}}, ".portNumber.protocol: unknown protocol 'ICMP'"),
    ({"portNumber": {"port": 1, "endPort": 2}}, ".portNumber: unknown field 'endPort'"),
    ({"portRange": {"start": 9, "end": 8}}, ".portRange: start 9 is not less than end 8"),
    ({"portRange": {"end": 8}}, ".portRange.start: must be a number, not null"),
    ({"namedPort": "A"}, ".namedPort: 'A' is not a port name"),
]


@pytest.mark.parametrize(("port", "problem"), V1ALPHA1_PORTS)
def test_a_v1alpha1_port_that_is_not_understood(port: Any, problem: str) -> None:
    rules = [rule(action, to=[NAMESPACES], ports=[port]) for action in ("Allow", "Deny", "Pass")]
    check_fails_closed(admin(egress=rules), f"ports[0]{problem}")


@pytest.mark.parametrize("peer", [{"networks": ["10.0.0.0/8"]}, {"nodes": {}}])
def test_named_ports_of_what_has_none(peer: Any) -> None:
    why = "named ports are those of pods, and a peer of this rule is not"
    v2 = [{"destinationNamedPort": "web"}]
    policy = cluster(egress=[rule(a, to=[NAMESPACES, peer], protocols=v2) for a in RuleAction])
    check_fails_closed(policy, f"protocols: {why}")
    policy = admin(egress=[rule(a, to=[peer], ports=[{"namedPort": "web"}]) for a in ("Allow", "Deny", "Pass")])
    check_fails_closed(policy, f"ports: {why}")


def test_rules_that_accept_nothing_keep_their_place_and_name() -> None:
    """People, counters and logs speak of a rule by its number."""
    rules = [rule("Accept", to=[{}], name="first"), rule("Deny", to=[NAMESPACES], name="second")]
    assert [(one.name, one.peers) for one in cluster(egress=rules).egress] == [("first", ()), ("second", (ALL,))]
