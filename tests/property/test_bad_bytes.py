"""Whatever bytes one object is made of: it alone is lost, with a reason, and where policy hangs on it, it
closes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.datastore.client import ApiError
from felix_py.datastore.decode import Kind, Unreadable, Unusable
from felix_py.datastore.kinds import (
    ADMIN_POLICIES,
    BASELINE_ADMIN_POLICIES,
    CLUSTER_POLICIES,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
)
from policy.model import ClusterPolicy, NetworkPolicy
from tests.support.badbytes import SPOILT_VALUES
from tests.support.fakeapi import SPOILT

Path = tuple[Any, ...]

SUBJECT = {"namespaces": {"matchLabels": {"team": "a"}}}
PEER = {"namespaces": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}}


def metadata(name: str, namespace: str) -> dict[str, Any]:
    labels = {"app": "web", "tier": "front"}
    found = {
        "name": name,
        "uid": f"uid-{name}",
        "resourceVersion": "7",
        "labels": labels,
        "annotations": {"a": "b"},
    }
    return found | ({"namespace": namespace} if namespace else {})


REST: dict[str, tuple[Kind[Any], str, dict[str, Any]]] = {
    "pod": (
        PODS,
        "shop",
        {
            "spec": {
                "nodeName": "node-1",
                "hostNetwork": False,
                "containers": [
                    {"name": "c", "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}], "env": [1]}
                ],
            },
            "status": {
                "phase": "Running",
                "podIP": "10.0.0.1",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            },
        },
    ),
    "namespace": (NAMESPACES, "", {"spec": {"finalizers": ["kubernetes"]}}),
    "node": (
        NODES,
        "",
        {
            "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "unschedulable": False},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        },
    ),
    "network policy": (
        POLICIES,
        "shop",
        {
            "spec": {
                "podSelector": {"matchLabels": {"app": "web"}},
                "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}], "ports": [{"port": 80}]}],
                "policyTypes": ["Ingress", "Egress"],
            },
            "status": {"conditions": [{"type": "x"}]},
        },
    ),
    "cluster policy": (
        CLUSTER_POLICIES,
        "",
        {
            "spec": {
                "tier": "Admin",
                "priority": 3,
                "subject": SUBJECT,
                "ingress": [{"name": "r", "action": "Accept", "from": [PEER]}],
                "egress": [{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}]}],
            },
            "status": {"conditions": []},
        },
    ),
    "admin policy": (
        ADMIN_POLICIES,
        "",
        {"spec": {"priority": 3, "subject": SUBJECT, "ingress": [{"action": "Deny", "from": [PEER]}]}},
    ),
    "baseline policy": (
        BASELINE_ADMIN_POLICIES,
        "",
        {"spec": {"subject": SUBJECT, "egress": [{"action": "Deny", "to": [{"networks": ["10.0.0.0/8"]}]}]}},
    ),
}


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in a document but the whole."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from paths(child, (*path, key))


def with_spoilt(document: Any, path: Path, key_instead: bool) -> Any:
    """The document with the value, or the name, of one place put aside for other bytes."""
    found = copy.deepcopy(document)
    parent = found
    for step in path[:-1]:
        parent = parent[step]
    if key_instead and isinstance(parent, dict):
        parent[SPOILT] = parent.pop(path[-1])
    else:
        parent[path[-1]] = SPOILT
    return found


class Case(NamedTuple):
    """A kind, objects of it of which one has a spoilt place, which one and where, and what stands there."""

    kind: Kind[Any]
    objects: list[Any]
    chosen: int
    path: Path
    value: bytes

    def __repr__(self) -> str:
        return f"Case({self.kind.name}, object {self.chosen}, {self.path}, {self.value[:40]!r})"


@st.composite
def spoilt(draw: st.DrawFn) -> Case:
    """Any of them."""
    kind, namespace, rest = REST[draw(st.sampled_from(sorted(REST)))]
    names = ("default",) if kind is BASELINE_ADMIN_POLICIES else ("a", "b", "c")
    objects = [{"metadata": metadata(name, namespace), **rest} for name in names]
    chosen = draw(st.integers(0, len(objects) - 1))
    path = draw(st.sampled_from(sorted(paths(objects[chosen]), key=str)))
    value = draw(st.sampled_from(SPOILT_VALUES))
    key_instead = draw(st.booleans()) and value.startswith(b'"')
    objects[chosen] = with_spoilt(objects[chosen], path, key_instead)
    return Case(kind, objects, chosen, path, value)


def sent(document: Any, value: bytes) -> bytes:
    return json.dumps(document).encode().replace(json.dumps(SPOILT).encode(), value)


def names_it(path: Path) -> bool:
    """Whether nothing can be known of an object that is spoilt here: not even which one it is."""
    return path[:1] == ("metadata",) and (path[1:] in ((), ("name",), ("namespace",)))


def check(kind: Kind[Any], found: Any, intact: Any, path: Path) -> None:
    """One object as decoded: a record, or its name with a reason; a policy is never left out."""
    msgspec.json.encode(found, enc_hook=str)
    repr(found).encode()
    if isinstance(found, Unusable):
        assert 0 < len(found.reason) < 2000
        assert names_it(path) or found.key == kind.key(intact)
    if isinstance(intact, NetworkPolicy | ClusterPolicy) and not names_it(path):
        assert not isinstance(found, Unusable)


@settings(deadline=None)
@given(spoilt())
def test_in_a_list_one_object_is_lost_at_most(case: Case) -> None:
    kind, objects, chosen, path, value = case
    namespace, rest = next((ns, rest) for other, ns, rest in REST.values() if other is kind)
    page = kind.listing(
        sent({"metadata": {"resourceVersion": "42", "continue": "more"}, "items": objects}, value)
    )
    assert (page.resource_version, page.continue_token) == ("42", "more")
    assert len(page.found) == len(objects)
    names = ("default",) if kind is BASELINE_ADMIN_POLICIES else ("a", "b", "c")
    intact = [kind.single(json.dumps({"metadata": metadata(name, namespace), **rest}).encode()) for name in names]
    for index, (found, whole) in enumerate(zip(page.found, intact, strict=True)):
        if index == chosen:
            check(kind, found, whole, path)
        else:
            assert found == whole


@settings(deadline=None)
@given(spoilt(), st.sampled_from(["ADDED", "MODIFIED", "DELETED"]))
def test_in_a_watch_one_object_is_lost_at_most(case: Case, what: str) -> None:
    kind, objects, chosen, path, value = case
    line = sent({"type": what, "object": objects[chosen]}, value)
    if b"\n" in line:
        return  # that is two lines
    try:
        change = kind.change(line)
    except Unreadable:
        assert what == "DELETED"
        assert names_it(path)
        return
    if what != "DELETED" and change.what is not None:
        check(kind, change.what, change.what, path) if not isinstance(change.what, Unusable) else None


@settings(deadline=None)
@given(spoilt(), st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
def test_any_bytes_are_refused_in_the_same_words(case: Case, place: int, data: bytes) -> None:
    """Also what tears a list or an event apart: nothing but what callers expect is raised."""
    kind, objects, chosen, _, value = case
    for document, decode in (
        ({"metadata": {"resourceVersion": "42"}, "items": objects}, kind.listing),
        ({"type": "ADDED", "object": objects[chosen]}, kind.change),
        ({"type": "BOOKMARK", "object": objects[chosen]}, kind.change),
        ({"type": "ERROR", "object": objects[chosen]}, kind.change),
    ):
        torn = sent(document, value)
        at = place % len(torn)
        try:
            decode(torn[:at] + data + torn[at + len(data) :])
        except (Unreadable, ApiError) as error:
            str(error).encode()


@pytest.mark.parametrize("value", SPOILT_VALUES)
def test_a_policy_whose_spec_cannot_be_read_denies(value: bytes) -> None:
    found = POLICIES.single(sent({"metadata": metadata("a", "shop"), "spec": {"podSelector": SPOILT}}, value))
    assert isinstance(found, NetworkPolicy)
    assert found.ingress == () or not found.problems
