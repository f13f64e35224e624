"""Objects of the cluster tiers: parsed as written; what is broken allows nothing that was denied."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Packet,
    PodPeer,
    PolicyKind,
    Port,
    Protocol,
    RuleAction,
)
from policy.oracle.evaluate import verdict
from policy.parse_cluster import BASELINE_ADMIN_PRIORITY
from policy.problems import Rejected
from tests.support.cluster_objects import PARSERS, written
from tests.support.clusters import Cluster, cluster_policies, clusters, packets
from tests.support.thorough import examples

PACKETS = packets()


def _named(port: Port) -> bool:
    return isinstance(port.port, str)


def _ports(one: ClusterRule) -> tuple[Port, ...] | None:
    """Those that the API can write: of a named port all protocols, a number everywhere, no range of one port."""
    if one.ports is None:
        return None
    found: list[Port] = []
    for port in one.ports:
        if isinstance(port.port, str):
            found += [Port(protocol, port.port) for protocol in Protocol]
        else:
            number = 80 if port.port is None else port.port
            end = port.end_port if port.end_port and port.end_port > number else None
            found.append(Port(port.protocol, number, end))
    return tuple(dict.fromkeys(found)) or None


def _rules(kind: PolicyKind, rules: tuple[ClusterRule, ...], *, ingress: bool) -> tuple[ClusterRule, ...]:
    found = []
    for number, one in enumerate(rules):
        ports = _ports(one)
        in_cluster = ingress or any(_named(port) for port in ports or ())
        peers = [peer for peer in one.peers or () if isinstance(peer, PodPeer) or not in_cluster]
        action = one.action
        if kind is PolicyKind.BASELINE_ADMIN and action is RuleAction.PASS:
            action = RuleAction.DENY
        if peers:
            found.append(ClusterRule(action, tuple(peers), ports, f"rule {number}"))
    return tuple(found)


def writable(policy: ClusterPolicy) -> ClusterPolicy:
    """The nearest policy that there is an object for."""
    subject = replace(policy.subject, namespaces=policy.subject.namespaces)
    priority = BASELINE_ADMIN_PRIORITY if policy.kind is PolicyKind.BASELINE_ADMIN else policy.priority
    return replace(
        policy,
        priority=priority,
        subject=subject,
        ingress=_rules(policy.kind, policy.ingress, ingress=True),
        egress=_rules(policy.kind, policy.egress, ingress=False),
        uid="u",
    )


objects = cluster_policies.map(writable)


@given(objects)
def test_what_is_written_is_what_is_parsed(policy: ClusterPolicy) -> None:
    assert PARSERS[policy.kind](written(policy)) == policy


# --- broken ----------------------------------------------------------------------------------------------------

JUNK: list[Any] = [
    None, True, 0, -1, 10**30, 1.5, "", "x", "\x00\n", "-", "10.0.0.0/8", [], ["x"], [None], {}, {"x": {}}, [{}],
    [{"namespaces": {}}], [[]], "a" * 300, {"podSelector": {}},
]  # fmt: skip
UNKNOWN = ("x", "matchFields", "except", "ports", "tier")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


@st.composite
def broken_objects(draw: st.DrawFn, obj: dict[str, Any]) -> dict[str, Any]:
    """The object with one value in its spec exchanged, taken away or joined by an unknown field."""
    obj = copy.deepcopy(obj)
    *front, last = draw(st.sampled_from(_places(obj["spec"], ("spec",))[1:]))
    parent: Any = obj
    for key in front:
        parent = parent[key]
    how = draw(st.sampled_from(("exchange", "exchange", "take away", "join")))
    if how == "join" and isinstance(parent[last], dict):
        parent[last][draw(st.sampled_from(UNKNOWN))] = draw(st.sampled_from(JUNK))
    elif how == "take away":
        del parent[last]
    else:
        parent[last] = draw(st.sampled_from(JUNK))
    return obj


def _allowed(cluster: Cluster, policy: ClusterPolicy, packets: list[Packet]) -> set[Packet]:
    others = {ref: one for ref, one in cluster.policies.items() if ref != policy.ref}
    view = replace(cluster, policies={**others, policy.ref: policy}).snapshot()
    return {packet for packet in packets if verdict(view, packet).allowed}


@settings(
    max_examples=examples(200),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    deadline=None,
)
@given(st.data(), clusters(), objects)
def test_a_broken_object_allows_nothing_that_the_whole_one_denies(
    data: st.DataObject, cluster: Cluster, policy: ClusterPolicy
) -> None:
    broken = PARSERS[policy.kind](data.draw(broken_objects(written(policy))))
    # Some changes make another policy that is as good as the first.
    assume(broken.problems)
    some = PACKETS[data.draw(st.integers(0, 22)) :: 23]
    assert _allowed(cluster, broken, some) <= _allowed(cluster, policy, some)


json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize("kind", PARSERS)
@given(json)
def test_no_spec_at_all_is_raised_over(kind: PolicyKind, spec: Any) -> None:
    policy = PARSERS[kind]({"metadata": {"name": "default"}, "spec": spec})
    assert policy.problems
    assert all(problem.isprintable() for problem in policy.problems)
    assert not any(one.action is not RuleAction.DENY for one in (*policy.ingress, *policy.egress))


@pytest.mark.parametrize("kind", PARSERS)
@given(json)
def test_what_has_no_name_is_rejected(kind: PolicyKind, obj: Any) -> None:
    with pytest.raises(Rejected):
        PARSERS[kind](obj)
