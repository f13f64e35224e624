"""CustomResourceDefinitions: whatever is defined is served, checked, defaulted and pruned."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.conftest import Kubectl, until

_SPEC = {
    "type": "object",
    "description": "What is wanted.",
    "required": ["address"],
    "properties": {
        "address": {"type": "string", "minLength": 2, "description": "Where it listens."},
        "asNumber": {"type": "integer", "minimum": 1, "maximum": 4294967295, "default": 64512},
        "mode": {"type": "string", "enum": ["active", "passive"]},
        "communities": {"type": "array", "items": {"type": "string", "pattern": r"^\d+:\d+$"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "timers": {
            "type": "object",
            "default": {},
            "properties": {"hold": {"type": "integer", "default": 90}},
        },
    },
}
GROUP = "/apis/conformance.example.com/v1"
_STATUS = {"type": "object", "properties": {"state": {"type": "string"}}}


def definition(plural: str, group: str) -> dict[str, Any]:
    """A definition with two versions, a status and printer columns."""
    schema = {"type": "object", "required": ["spec"], "properties": {"spec": _SPEC, "status": _STATUS}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [
            {"name": "ASN", "type": "integer", "jsonPath": ".spec.asNumber"},
            {"name": "State", "type": "string", "jsonPath": ".status.state"},
            {"name": "Mode", "type": "string", "jsonPath": ".spec.mode", "priority": 1},
        ],
    }
    names = {"kind": plural.capitalize(), "plural": plural, "singular": plural[:-1]}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": names,
            "versions": [version, {**version, "name": "v1beta1", "storage": False}],
        },
    }


@pytest.fixture(scope="module")
def plural(cluster: Kubectl) -> Iterator[str]:
    """The plural name of a defined kind; its group is ``conformance.example.com``."""
    name = f"p{uuid.uuid4().hex[:6]}s"
    crd = definition(name, "conformance.example.com")
    cluster.apply(crd)
    cluster("wait", "--for=condition=Established", f"crd/{name}.conformance.example.com", "--timeout=10s")
    until(lambda: name in cluster("api-resources", "--cached=false"))
    yield name
    cluster("delete", "crd", f"{name}.conformance.example.com")
    until(lambda: cluster.run("get", f"{name}.conformance.example.com").returncode != 0)


def peer(plural: str, version: str = "v1", **spec: Any) -> dict[str, Any]:
    """An object of the defined kind."""
    return {
        "apiVersion": f"conformance.example.com/{version}",
        "kind": plural.capitalize(),
        "metadata": {"name": "tor"},
        "spec": {"address": "10.0.0.1", **spec},
    }


def test_defaults_and_free_form(kubectl: Kubectl, plural: str) -> None:
    kubectl.apply(peer(plural, free={"any": {"thing": [1]}}))
    assert kubectl.get(plural, "tor")["spec"] == {
        "address": "10.0.0.1",
        "asNumber": 64512,
        "timers": {"hold": 90},
        "free": {"any": {"thing": [1]}},
    }


def test_columns(kubectl: Kubectl, plural: str) -> None:
    kubectl.apply(peer(plural, mode="active"))
    kubectl.set_status(GROUP, plural, "tor", status={"state": "up"})
    assert [line.split() for line in kubectl("get", plural).splitlines()] == [
        ["NAME", "ASN", "STATE"],
        ["tor", "64512", "up"],
    ]
    assert kubectl("get", plural, "-o", "wide").splitlines()[0].split()[-1] == "MODE"


def test_status_and_spec_are_apart(kubectl: Kubectl, plural: str) -> None:
    kubectl.apply(peer(plural))
    kubectl.set_status(GROUP, plural, "tor", status={"state": "up"}, spec={"address": "10.0.0.2", "asNumber": 5})
    found = kubectl.get(plural, "tor")
    assert (found["status"], found["spec"]["asNumber"]) == ({"state": "up"}, 64512)
    assert found["metadata"]["generation"] == 1
    kubectl("patch", plural, "tor", "--type=merge", "-p", '{"status":{"state":"down"},"spec":{"asNumber":5}}')
    found = kubectl.get(plural, "tor")
    assert (found["status"], found["spec"]["asNumber"]) == ({"state": "up"}, 5)
    assert found["metadata"]["generation"] == 2


def test_validation(kubectl: Kubectl, plural: str) -> None:
    broken = peer(plural, address="x", asNumber="many", mode="lazy", communities=["a"])
    refused = kubectl.fails("apply", "-f", "-", stdin=broken)
    for words in (
        'spec.address: Invalid value: "x": spec.address in body should be at least 2 chars long',
        'spec.asNumber: Invalid value: "string": spec.asNumber in body must be of type integer: "string"',
        'spec.mode: Unsupported value: "lazy": supported values: "active", "passive"',
        r"spec.communities[0]: Invalid value: \"a\": spec.communities[0] in body should match '^\d+:\d+$'",
    ):
        assert words.replace('\\"', '"') in refused
    del broken["spec"]
    assert "spec: Required value" in kubectl.fails("apply", "-f", "-", stdin=broken)


def test_unknown_fields_are_refused_or_pruned(kubectl: Kubectl, plural: str) -> None:
    unknown = peer(plural, bogus=1)
    path = f"{GROUP}/namespaces/{kubectl.namespace}/{plural}?fieldValidation="
    refused = kubectl.fails("create", "--raw", path + "Strict", "-f", "-", stdin=unknown)
    assert "BadRequest" in refused
    kubectl("create", "--raw", path + "Ignore", "-f", "-", stdin=unknown)
    assert "bogus" not in kubectl.get(plural, "tor")["spec"]


def test_versions_are_two_views_of_one_object(kubectl: Kubectl, plural: str) -> None:
    kubectl.apply(peer(plural, version="v1beta1"))
    for version in ("v1", "v1beta1"):
        found = kubectl.get(f"{plural}.{version}.conformance.example.com", "tor")
        assert found["apiVersion"] == f"conformance.example.com/{version}"
        assert found["spec"]["address"] == "10.0.0.1"


def test_server_side_apply(kubectl: Kubectl, plural: str) -> None:
    kubectl.apply(peer(plural, mode="active"), args=("--server-side",))
    kubectl.apply(peer(plural), args=("--server-side",))
    assert "mode" not in kubectl.get(plural, "tor")["spec"]
    refused = kubectl.fails(
        "apply", "--server-side", "--field-manager=x", "-f", "-", stdin=peer(plural, address="10.0.0.2")
    )
    assert 'conflict with "kubectl": .spec.address' in refused


@pytest.mark.usefixtures("modern")
def test_explain(kubectl: Kubectl, plural: str) -> None:
    explained = kubectl("explain", f"{plural}.spec")
    assert "What is wanted." in explained
    assert "address\t<string> -required-" in explained


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"properties": {"spec": {"properties": {}}}}, "must not be empty for specified object fields"),
        ({"type": "string"}, 'must be object at the root'),
        ({"properties": {"spec": {"type": "array"}}}, "items: Required value"),
        (
            {"properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}},
                                     "additionalProperties": {"type": "string"}}}},
            "mutual",
        ),
    ],
)  # fmt: skip
def test_unstructural_definitions_are_refused(cluster: Kubectl, change: dict[str, Any], words: str) -> None:
    crd = definition("widgets", "refused.example.com")
    crd["spec"]["versions"] = crd["spec"]["versions"][:1]
    crd["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": {"type": "object"} | change}
    assert words in cluster.fails("apply", "-f", "-", stdin=crd)


def test_objects_go_with_their_definition(cluster: Kubectl, kubectl: Kubectl) -> None:
    name = f"q{uuid.uuid4().hex[:6]}s"
    crd = definition(name, "conformance.example.com")
    for _ in range(2):
        cluster.apply(crd)
        cluster("wait", "--for=condition=Established", f"crd/{name}.conformance.example.com", "--timeout=10s")
        until(lambda: kubectl.run("get", name).returncode == 0)
        assert kubectl("get", name, "-o", "name") == ""
        kubectl.apply(peer(name))
        cluster("delete", "crd", f"{name}.conformance.example.com")
        until(lambda: kubectl.run("get", name).returncode != 0)


def test_a_watch_ends_with_its_definition(cluster: Kubectl, kubectl: Kubectl) -> None:
    name = f"w{uuid.uuid4().hex[:6]}s"
    crd = definition(name, "conformance.example.com")
    cluster.apply(crd)
    cluster("wait", "--for=condition=Established", f"crd/{name}.conformance.example.com", "--timeout=10s")
    until(lambda: kubectl.run("get", name).returncode == 0)
    kubectl.apply(peer(name))
    with kubectl.started("get", "--raw", f"{GROUP}/{name}?watch=true") as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["type"] == "ADDED"
        cluster("delete", "crd", f"{name}.conformance.example.com")
        types = [json.loads(line)["type"] for line in watch.stdout]
        assert types[-1:] == ["DELETED"]
        assert watch.wait(15) == 0
