"""The reasons that an explanation gives, in words."""

from __future__ import annotations

import pytest

from policy.model import (
    ClusterPolicy,
    ClusterRule,
    IPBlock,
    NamedPort,
    Namespace,
    NetworkPolicy,
    NodePeer,
    Operator,
    Packet,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRule,
    Port,
    Protocol,
    Requirement,
    RuleAction,
    Selector,
    Tier,
)
from policy.oracle.evaluate import Snapshot
from policy.oracle.explain import Explanation, Free, describe_peers, describe_selector, explain

TCP = Protocol.TCP


def requirement(key: str, operator: Operator, *values: str) -> Requirement:
    return Requirement(key, operator, values)


APP_X = Selector((requirement("app", Operator.IN, "x"),))


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (Selector(), ""),
        (APP_X, "app=x"),
        (Selector((requirement("a", Operator.IN, "x", "y"), requirement("b", Operator.EXISTS))), "a in (x,y),b"),
        (
            Selector((requirement("a", Operator.NOT_IN, "x"), requirement("b", Operator.DOES_NOT_EXIST))),
            "a!=x,!b",
        ),
    ],
)
def test_selectors_as_kubectl_writes_them(selector: Selector, text: str) -> None:
    assert describe_selector(selector) == text


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        (None, "anybody"),
        ((), "none of its peers could be understood"),
        ((PodPeer(None, APP_X),), "pods app=x of its own namespace"),
        ((PodPeer(Selector(), APP_X),), "pods app=x in any namespace"),
        ((PodPeer(APP_X, None),), "all pods in namespaces app=x"),
        ((NodePeer(APP_X), NodePeer(Selector())), "nodes app=x; all nodes"),
        ((IPBlock("10.0.0.0/8", ("10.1.0.0/16",)),), "10.0.0.0/8 except 10.1.0.0/16"),
        (tuple(IPBlock(f"10.{n}.0.0/16") for n in range(6)), "10.3.0.0/16; and 2 more"),
    ],
)
def test_peers(peers: tuple[PodPeer, ...] | None, text: str) -> None:
    assert describe_peers(peers).endswith(text)


NAMED = (NamedPort("http", TCP, 8080),)
A = Pod("ns", "a", addresses=("10.0.0.1",), labels=(("app", "x"),))
B = Pod("ns", "b", addresses=("10.0.0.2",), ports=NAMED)


def explained(*policies: NetworkPolicy | ClusterPolicy, port: int = 80) -> Explanation:
    view = Snapshot([Namespace("ns")], [A, B], policies)
    return explain(view, Packet("10.0.0.1", "10.0.0.2", TCP, port), frozenset({"192.0.2.1"}))


def network(name: str, *rules: PolicyRule) -> NetworkPolicy:
    return NetworkPolicy("ns", name, Selector(), ingress=rules)


NO_PEER = "peer does not match (pods app=y of its own namespace)"


def test_why_each_rule_did_not_match() -> None:
    other = PodPeer(None, Selector((requirement("app", Operator.IN, "y"),)))
    found = explained(
        network(
            "p",
            PolicyRule((other,), (Port(TCP, 80),)),
            PolicyRule(None, (Port(TCP, "http"), Port(TCP, "https"), Port(TCP, 90, 99), Port(Protocol.UDP))),
            PolicyRule((other,), ()),
        ),
        network("q"),
    )
    assert not found.allowed
    one, other_policy = found.ingress.asked
    assert [tried.reason for tried in one.tried] == [
        NO_PEER,
        "port does not match (http/TCP, there 8080; https/TCP, which it does not have; 90-99/TCP; any UDP)",
        f"{NO_PEER}; port does not match (none of its ports could be understood)",
    ]
    assert other_policy.tried == ()


def test_a_pass_and_what_comes_behind_it() -> None:
    everybody = PodPeer(Selector(), None)

    def cluster(name: str, tier: Tier, priority: int, *rules: ClusterRule) -> ClusterPolicy:
        return ClusterPolicy(PolicyKind.CLUSTER, name, tier, priority, everybody, ingress=rules)

    found = explained(
        cluster(
            "first",
            Tier.ADMIN,
            1,
            ClusterRule(RuleAction.DENY, (everybody,), (Port(TCP, 22),), "ssh"),
            ClusterRule(RuleAction.PASS, (everybody,), None, "rest"),
        ),
        cluster("second", Tier.ADMIN, 2, ClusterRule(RuleAction.DENY, None)),
        cluster("last", Tier.BASELINE, 0, ClusterRule(RuleAction.DENY, None)),
    )
    said = found.ingress.verdict
    assert said is not None
    assert said.decided_by is not None
    assert (str(said.decided_by.policy), said.tier) == ("ClusterNetworkPolicy last", Tier.BASELINE)
    assert [(rule.index, rule.name) for rule in said.passed_by] == [(1, "rest")]
    assert [(str(asked.policy), len(asked.tried)) for asked in found.ingress.asked] == [
        ("ClusterNetworkPolicy first", 1),
        ("ClusterNetworkPolicy last", 0),
    ]
    assert [str(ref) for ref in found.ingress.not_asked] == ["ClusterNetworkPolicy second"]


def test_ends_that_no_policy_is_asked_about() -> None:
    view = Snapshot([Namespace("ns")], [A, B], [network("deny")])
    outside = explain(view, Packet("198.51.100.1", "198.51.100.2", TCP, 80))
    assert (outside.egress.free, outside.ingress.free, outside.allowed) == (Free.NO_POD, Free.NO_POD, True)
    own = explain(view, Packet("192.0.2.1", "10.0.0.2", TCP, 80), frozenset({"192.0.2.1"}))
    assert (own.ingress.free, own.allowed) == (Free.OWN_NODE, True)
    itself = explain(view, Packet("10.0.0.2", "10.0.0.2", TCP, 80))
    assert (itself.egress.free, itself.ingress.free, itself.allowed) == (Free.SELF, Free.SELF, True)
