"""No body takes the API server down: whatever is sent ends in an object that can be read, or in a Status."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from lab.apiserver.errors import ApiError
from lab.apiserver.instance import Instance
from lab.apiserver.kinds import Obj
from lab.apiserver.requests import find_target, split_path
from lab.apiserver.rest import (
    APPLY_PATCH,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    ListOptions,
    Target,
    WriteOptions,
)
from lab.apiserver.store import decode
from tests.support.thorough import examples

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.text("ab/.0-", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "ports", "a", "type"]), inner)
    ),
    max_leaves=4,
)

BASES: dict[str, Obj] = {
    "/api/v1/namespaces/default/pods": {
        "metadata": {"name": "x", "labels": {"a": "b"}},
        "spec": {
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1}], "env": [{"name": "e"}]}]
        },
    },
    "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies": {
        "metadata": {"name": "x"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
            "ingress": [
                {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/9"]}}], "ports": [{"port": 1}]}
            ],
        },
    },
    "/api/v1/namespaces/default/services": {
        "metadata": {"name": "x"},
        "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 1, "targetPort": "http"}]},
    },
    "/api/v1/nodes": {
        "metadata": {"name": "x"},
        "spec": {"podCIDRs": ["10.0.0.0/24"], "taints": [{"key": "a", "effect": "NoSchedule"}]},
        "status": {"capacity": {"cpu": 1}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
    },
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions": {
        "metadata": {"name": "as.b.c"},
        "spec": {
            "group": "b.c",
            "scope": "Cluster",
            "names": {"kind": "A", "plural": "as"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object"}}}},
                    "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}],
                }
            ],
        },
    },
    "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices": {
        "metadata": {"name": "x"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
        "ports": [{"name": "a", "port": 1}],
    },
}  # fmt: skip


def _spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(spot for key in keys for spot in _spots(value[key], (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, Obj, Any]:
    """A path, a good object, and that object with one or two parts replaced by any JSON."""
    path = draw(st.sampled_from(sorted(BASES)))
    body: Any = copy.deepcopy(BASES[path])
    for _ in range(draw(st.integers(1, 2))):
        *parents, last = draw(st.sampled_from(_spots(body)[1:] or [("metadata",)]))
        holder = body
        for key in parents:
            holder = holder[key]
        holder[last] = draw(JSON)
    return path, BASES[path], body


def _target(instance: Instance, path: str) -> Target:
    split = split_path(path)
    assert split is not None
    return find_target(instance.registry, split)


def _attempt(call: Any, *args: Any) -> None:
    """The call succeeds or is refused; 500 is for server-side apply's unknown fields alone."""
    try:
        call(*args)
    except ApiError as error:
        if error.code >= 500 and "field not declared in schema" not in error.message:
            raise


@settings(max_examples=examples(300), deadline=None)
@given(case=damaged())
def test_any_body_of_any_verb(case: tuple[str, Obj, Any]) -> None:
    path, good, body = case
    instance = Instance(1, 1000, ["10.96.0.0/24"])
    options = WriteOptions("fuzz")
    collection, name = _target(instance, path), good["metadata"]["name"]
    item = _target(instance, f"{path}/{name}")
    _attempt(instance.rest.create, collection, copy.deepcopy(body), options)
    _attempt(instance.rest.create, collection, copy.deepcopy(good), options)
    instance.rest.get(item)
    _attempt(instance.rest.update, item, copy.deepcopy(body), options)
    for kind in (MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH):
        _attempt(instance.rest.patch, item, kind, copy.deepcopy(body), options)
    _attempt(
        instance.rest.patch, item, JSON_PATCH, [{"op": "replace", "path": "/metadata", "value": body}], options
    )
    _attempt(instance.rest.delete, item, body, False)
    for stored in instance.rest.list(collection, ListOptions()).items:
        assert decode(stored.raw) == stored.obj
        for column in collection.version.columns:
            column.cell(stored.obj)
