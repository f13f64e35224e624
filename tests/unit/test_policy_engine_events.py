"""The engine, event by event: what must hold at moments that random clusters seldom meet."""

from __future__ import annotations

from dataclasses import replace

from policy.model import (
    Direction,
    Family,
    IPBlock,
    LocalEndpoint,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Pod,
    PodPeer,
    PolicyRule,
    Port,
    Protocol,
    Selector,
)
from tests.support.builders import labelled
from tests.support.told import ToldEngine

EVERY = Selector()
FROM_ALL_PODS = NetworkPolicy("a", "p", EVERY, ingress=(PolicyRule((PodPeer(None, EVERY),)),))
X = Pod("a", "x", addresses=("10.0.0.1",))
X_HERE = LocalEndpoint("a", "x", ("10.0.0.1",))


def members(engine: ToldEngine) -> frozenset[str]:
    (found,) = engine.program(Family.V4).members.values()
    return found


def test_a_pod_is_counted_once_in_a_set_that_its_own_endpoint_opens() -> None:
    engine = ToldEngine()
    engine.upsert(FROM_ALL_PODS)
    engine.upsert(X)
    engine.lease(X_HERE)
    assert members(engine) == {"10.0.0.1"}
    engine.told.remove(Pod, X.key)
    assert members(engine) == frozenset()


def test_an_endpoint_keeps_its_class_when_its_pod_vanishes() -> None:
    engine = ToldEngine()
    engine.upsert(FROM_ALL_PODS)
    engine.upsert(X)
    engine.lease(X_HERE)
    engine.told.remove(Pod, X.key)
    assert engine.endpoint_policies(X.key, Direction.INGRESS) == (FROM_ALL_PODS.ref,)
    assert engine.endpoint_policies(X.key, Direction.EGRESS) is None


def test_an_endpoint_without_a_pod_is_denied_everything() -> None:
    engine = ToldEngine()
    engine.lease(X_HERE)
    program = engine.program(Family.V4)
    for direction in Direction:
        (rule,) = program.chains[program.classes[direction]["10.0.0.1"]].rules
        assert type(rule.action).__name__ == "Deny"
    engine.upsert(X)
    assert engine.program(Family.V4).classes == {direction: {} for direction in Direction}


def test_an_address_that_goes_to_another_endpoint_keeps_a_class() -> None:
    """The runtime may attach the new pod before it detaches the old one."""
    engine = ToldEngine()
    engine.upsert(FROM_ALL_PODS)
    for name in ("x", "y"):
        engine.upsert(Pod("a", name, addresses=("10.0.0.1",)))
        engine.lease(LocalEndpoint("a", name, ("10.0.0.1",)))
    engine.detach(("a", "x"))
    assert "10.0.0.1" in engine.program(Family.V4).classes[Direction.INGRESS]
    engine.detach(("a", "y"))
    assert engine.program(Family.V4).classes[Direction.INGRESS] == {}


def test_a_pod_and_a_block_of_one_address_are_one_member() -> None:
    """To the kernel, 10.0.0.1 and 10.0.0.1/32 are the same member of a hash:net set."""
    engine = ToldEngine()
    peers = (PodPeer(None, EVERY), IPBlock("10.0.0.1/32"))
    engine.upsert(NetworkPolicy("a", "p", EVERY, ingress=(PolicyRule(peers),)))
    engine.upsert(X)
    engine.lease(X_HERE)
    assert members(engine) == {"10.0.0.1"}
    engine.told.remove(Pod, X.key)
    assert members(engine) == {"10.0.0.1"}


def test_labels_of_a_namespace_that_come_and_go_leave_nothing_behind() -> None:
    engine = ToldEngine()
    dev = labelled(team="dev")
    peers = (PodPeer(dev, None), PodPeer(None, EVERY))
    engine.upsert(NetworkPolicy("a", "p", EVERY, ingress=(PolicyRule(peers),)))
    engine.upsert(X)
    engine.lease(X_HERE)
    assert engine.flush()
    engine.upsert(Namespace("a", (("team", "dev"),)))
    engine.upsert(Namespace("a"))
    engine.upsert(Namespace("a", (("x", "y"),)))
    assert engine.flush() == []
    engine.told.remove(Namespace, "a")
    assert members(engine) == {"10.0.0.1"}


def test_another_number_under_a_port_s_name_takes_effect() -> None:
    engine = ToldEngine()
    rule = PolicyRule(None, (Port(Protocol.TCP, "http"),))
    engine.upsert(NetworkPolicy("a", "p", EVERY, ingress=(rule,)))
    engine.lease(X_HERE)
    for number in (80, 8080):
        engine.upsert(replace(X, ports=(NamedPort("http", Protocol.TCP, number),)))
        assert members(engine) == {f"10.0.0.1,tcp:{number}"}


def test_a_pod_that_finishes_leaves_its_sets() -> None:
    engine = ToldEngine()
    engine.upsert(FROM_ALL_PODS)
    engine.lease(X_HERE)
    engine.upsert(X)
    assert members(engine) == {"10.0.0.1"}
    engine.upsert(replace(X, active=False))
    assert members(engine) == frozenset()


def test_a_namespace_that_gets_the_labels_joins() -> None:
    engine = ToldEngine()
    dev = labelled(team="dev")
    engine.upsert(NetworkPolicy("a", "p", EVERY, ingress=(PolicyRule((PodPeer(dev, None),)),)))
    engine.upsert(X)
    engine.lease(X_HERE)
    assert members(engine) == frozenset()
    engine.upsert(Namespace("a", (("team", "dev"),)))
    assert members(engine) == {"10.0.0.1"}
    engine.upsert(Namespace("a"))
    assert members(engine) == frozenset()
