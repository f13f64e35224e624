"""Impact of a change, case by case: what random clusters seldom have."""

from __future__ import annotations

from dataclasses import replace

from policy.impact.answers import Decision
from policy.impact.cohorts import World
from policy.impact.compare import Effect, Extent, Group, Impact, ProtocolPorts, Turn, impact
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Direction,
    Family,
    IPBlock,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Node,
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
from policy.oracle.evaluate import RuleRef, Snapshot

EVERYBODY = PodPeer(Selector(), None)
EVERY_PORT = tuple(ProtocolPorts(protocol, 1, 65535) for protocol in Protocol)
DENY = NetworkPolicy("shop", "deny", Selector(), ingress=())


def pod(name: str, *addresses: str, namespace: str = "shop", node: str = "", host_network: bool = False) -> Pod:
    return Pod(namespace, name, node=node, addresses=addresses, host_network=host_network)


def guard(*rules: ClusterRule) -> ClusterPolicy:
    return ClusterPolicy(PolicyKind.CLUSTER, "guard", Tier.ADMIN, 1, EVERYBODY, ingress=rules)


def applied(cluster: Snapshot, *policies: NetworkPolicy | ClusterPolicy) -> Impact:
    return impact(cluster, {policy.ref: policy for policy in policies})


def named(group: Group) -> tuple[list[str], list[str]]:
    return tuple(  # type: ignore[return-value]
        ["world" if isinstance(party.what, World) else party.what.name for party in side]
        for side in (group.sources, group.destinations)
    )


def sides(found: Impact) -> list[tuple[list[str], list[str]]]:
    return [named(group) for group in found.groups]


def test_a_namespace_that_is_not_known_is_no_subject_and_no_peer() -> None:
    """Also where a known one without labels looks the same."""
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", namespace="unknown"), pod("c", "10.0.0.3")]
    cluster = Snapshot([Namespace("shop")], pods, [])
    found = applied(cluster, guard(ClusterRule(RuleAction.DENY, (EVERYBODY,))))
    assert sides(found) == [(["a", "c"], ["a", "c"])]
    assert found.extents[Effect.DENIED] == Extent(pod_pairs=2)


def test_a_lone_pod_and_itself_is_no_pair() -> None:
    cluster = Snapshot([Namespace("shop")], [pod("only", "10.0.0.1")], [])
    assert applied(cluster, guard(ClusterRule(RuleAction.DENY, (EVERYBODY,)))).groups == ()


def test_a_node_reaches_its_own_pods_whatever_policy_says() -> None:
    nodes = [Node("n1", (), ("192.168.0.1",)), Node("n2", (), ("192.168.0.2",))]
    pods = [pod("a", "10.0.0.1", node="n1"), pod("host", "192.168.0.2", node="n2", host_network=True)]
    found = applied(Snapshot([Namespace("shop")], pods, [], nodes), DENY)
    assert sides(found) == [(["n2", "world"], ["a"])]
    assert found.extents[Effect.DENIED] == Extent(node_pairs=1, world_pods=1)


def test_a_node_with_two_addresses_of_a_family_is_one() -> None:
    nodes = [Node("n1", (), ("192.168.0.1", "203.0.113.1"))]
    found = applied(Snapshot([Namespace("shop")], [pod("a", "10.0.0.1")], [], nodes), DENY)
    assert found.extents[Effect.DENIED].node_pairs == 1


def test_pods_of_one_family_and_of_both_are_one_group() -> None:
    """Each pair changes in every family that it shares."""
    pods = [pod("four", "10.0.0.1"), pod("six", "fd00::1"), pod("both", "10.0.0.2", "fd00::2")]
    (group, *others) = applied(Snapshot([Namespace("shop")], pods, []), DENY).groups
    assert group.family is None
    pairs = {(one.what, other.what) for g in (group, *others) for one, other in g.pairs()}
    assert (pods[0], pods[1]) not in pairs
    assert (pods[0], pods[2]) in pairs


def test_a_block_of_one_family_makes_a_difference_there_only() -> None:
    pods = [pod("a", "10.0.0.1", "fd00::1"), pod("b", "10.0.0.2", "fd00::2")]
    allow = NetworkPolicy("shop", "deny", Selector(), ingress=(PolicyRule((IPBlock("10.0.0.0/8"),)),))
    found = applied(Snapshot([Namespace("shop")], pods, []), allow)
    between = [group for group in found.groups if named(group) == (["a", "b"], ["a", "b"])]
    assert [(group.family, group.effect) for group in between] == [(Family.V6, Effect.DENIED)]


def test_pods_without_an_address_are_not_looked_at() -> None:
    pods = [pod("a", "10.0.0.1"), pod("waiting"), Pod("shop", "done", addresses=("10.0.0.9",), active=False)]
    (group,) = applied(Snapshot([Namespace("shop")], pods, []), DENY).groups
    assert named(group) == (["world"], ["a"])


def test_both_ends_that_change_their_mind_are_told() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    deny = NetworkPolicy("shop", "deny", Selector(), ingress=(), egress=())
    found = applied(Snapshot([Namespace("shop")], pods, []), deny)
    (inside,) = (group for group in found.groups if named(group) == (["a", "b"], ["a", "b"]))
    isolated = Decision(False, Tier.NETWORK, None, (deny.ref,))
    assert inside.turns == tuple(
        Turn(direction, Decision(True), isolated) for direction in (Direction.EGRESS, Direction.INGRESS)
    )
    assert inside.ports == EVERY_PORT


def test_an_end_that_denies_before_and_after_keeps_the_pair_out() -> None:
    """Opened at one end, still closed at the other: nothing changes."""
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2", namespace="dev")]
    closed = NetworkPolicy("dev", "closed", Selector(), egress=())
    cluster = Snapshot([Namespace("shop"), Namespace("dev")], pods, [DENY, closed])
    opened = NetworkPolicy("shop", "deny", Selector(), ingress=(PolicyRule((EVERYBODY,)),))
    assert applied(cluster, opened).groups == ()


def test_rules_and_ranges_are_told_exactly() -> None:
    pods = [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")]
    before = guard(ClusterRule(RuleAction.DENY, (EVERYBODY,), (Port(Protocol.TCP, 80, 90),), "some"))
    after = guard(
        ClusterRule(RuleAction.ACCEPT, (EVERYBODY,), (Port(Protocol.TCP, 85),)),
        ClusterRule(RuleAction.DENY, (EVERYBODY,), (Port(Protocol.TCP, 80, 95),), "more"),
    )
    found = applied(Snapshot([Namespace("shop")], pods, [before]), after)
    by_effect = {group.effect: group for group in found.groups}
    denied, allowed = by_effect[Effect.DENIED], by_effect[Effect.ALLOWED]
    assert denied.ports == (ProtocolPorts(Protocol.TCP, 91, 95),)
    assert denied.turns == (
        Turn(
            Direction.INGRESS,
            Decision(True),
            Decision(False, Tier.ADMIN, RuleRef(after.ref, 1, "more")),
        ),
    )
    assert allowed.ports == (ProtocolPorts(Protocol.TCP, 85, 85),)
    assert allowed.turns == (
        Turn(
            Direction.INGRESS,
            Decision(False, Tier.ADMIN, RuleRef(before.ref, 0, "some")),
            Decision(True, Tier.ADMIN, RuleRef(after.ref, 0)),
        ),
    )


def test_another_priority_alone_may_turn_everything() -> None:
    first = guard(ClusterRule(RuleAction.ACCEPT, None))
    other = replace(guard(ClusterRule(RuleAction.DENY, None)), name="other", priority=2)
    cluster = Snapshot([Namespace("shop")], [pod("a", "10.0.0.1"), pod("b", "10.0.0.2")], [first, other])
    found = applied(cluster, replace(other, priority=0))
    assert {group.effect for group in found.groups} == {Effect.DENIED}
    assert found.extents[Effect.DENIED] == Extent(pod_pairs=2, world_pods=2)


def test_a_port_name_of_an_egress_rule_is_each_destination_s_own() -> None:
    def server(name: str, address: str, port: int) -> Pod:
        return replace(pod(name, address), ports=(NamedPort("http", Protocol.TCP, port),))

    pods = [server("a", "10.0.0.1", 80), server("b", "10.0.0.2", 8080), pod("c", "10.0.0.3")]
    web = PolicyRule((EVERYBODY,), (Port(Protocol.TCP, "http"),))
    out = NetworkPolicy("shop", "out", Selector(), egress=(web,))
    cluster = Snapshot([Namespace("shop")], pods, [out])
    closed = applied(cluster, replace(out, egress=()))
    assert {(*named(group)[1], group.ports) for group in closed.groups} == {
        ("a", (ProtocolPorts(Protocol.TCP, 80, 80),)),
        ("b", (ProtocolPorts(Protocol.TCP, 8080, 8080),)),
    }


def test_no_change_is_no_impact() -> None:
    found = applied(Snapshot([Namespace("shop")], [pod("a", "10.0.0.1")], [DENY]), DENY)
    assert (found.groups, any(found.extents.values())) == ((), False)
