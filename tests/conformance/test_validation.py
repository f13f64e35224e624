"""What the API server refuses, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client

from tests.conformance.conftest import Kubectl, config_map, network_policy, pod

Causes = set[tuple[str, str]]


def _causes(error: client.ApiException) -> Causes:
    assert error.status == 422, error.body
    status = json.loads(error.body)
    assert status["reason"] == "Invalid"
    return {(cause["field"], cause["reason"]) for cause in status["details"]["causes"]}


def _peer(**peer: Any) -> dict[str, Any]:
    return {"ingress": [{"from": [peer]}]}


def _port(**port: Any) -> dict[str, Any]:
    return {"ingress": [{"ports": [port]}]}


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        (_peer(ipBlock={"cidr": "10.0.0.0/33"}), "ingress[0].from[0].ipBlock.cidr", "Invalid"),
        (_peer(ipBlock={"cidr": "10.0.0.1"}), "ingress[0].from[0].ipBlock.cidr", "Invalid"),
        (_peer(ipBlock={"cidr": ""}), "ingress[0].from[0].ipBlock.cidr", "Required"),
        (
            _peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}),
            "ingress[0].from[0].ipBlock.except[0]",
            "Invalid",
        ),
        (
            _peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}),
            "ingress[0].from[0].ipBlock.except[0]",
            "Invalid",
        ),
        (_peer(ipBlock={"cidr": "10.0.0.0/8"}, podSelector={}), "ingress[0].from[0]", "Forbidden"),
        (_peer(), "ingress[0].from[0]", "Required"),
        (_port(protocol="ICMP"), "ingress[0].ports[0].protocol", "NotSupported"),
        (_port(port=0), "ingress[0].ports[0].port", "Invalid"),
        (_port(port=65536), "ingress[0].ports[0].port", "Invalid"),
        (_port(port="Not_A_Name"), "ingress[0].ports[0].port", "Invalid"),
        (_port(port=80, endPort=79), "ingress[0].ports[0].endPort", "Invalid"),
        (_port(port="http", endPort=90), "ingress[0].ports[0].endPort", "Invalid"),
        (_port(endPort=90), "ingress[0].ports[0].endPort", "Invalid"),
        ({"policyTypes": ["Sideways"]}, "policyTypes[0]", "NotSupported"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}},
            "podSelector.matchExpressions[0].operator",
            "Invalid",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "podSelector.matchExpressions[0].values",
            "Required",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}},
            "podSelector.matchExpressions[0].values",
            "Forbidden",
        ),
        ({"podSelector": {"matchLabels": {"a": "not valid!"}}}, "podSelector.matchLabels", "Invalid"),
    ],
)
def test_network_policies(
    kubectl: Kubectl, api: client.ApiClient, spec: dict[str, Any], path: str, reason: str
) -> None:
    networking = client.NetworkingV1Api(api)
    with pytest.raises(client.ApiException) as refused:
        networking.create_namespaced_network_policy(kubectl.namespace, network_policy(**spec))
    assert (f"spec.{path}", f"FieldValue{reason}") in _causes(refused.value)
    assert networking.list_namespaced_network_policy(kubectl.namespace).items == []


def test_pods(kubectl: Kubectl, core: client.CoreV1Api) -> None:
    broken = pod()
    broken["metadata"]["labels"] = {"a b": "c"}
    broken["spec"]["containers"] = [
        {"name": "UPPER", "image": "x", "ports": [{"containerPort": 70000}]},
        {"name": "two", "ports": [{"name": "http", "containerPort": 1}, {"name": "http", "containerPort": 2}]},
        {"name": "two", "image": "x", "ports": [{"containerPort": 1, "protocol": "ICMP"}]},
    ]
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_pod(kubectl.namespace, broken)
    assert _causes(refused.value) >= {
        ("metadata.labels", "FieldValueInvalid"),
        ("spec.containers[0].name", "FieldValueInvalid"),
        ("spec.containers[0].ports[0].containerPort", "FieldValueInvalid"),
        ("spec.containers[1].image", "FieldValueRequired"),
        ("spec.containers[1].ports[1].name", "FieldValueDuplicate"),
        ("spec.containers[2].name", "FieldValueDuplicate"),
        ("spec.containers[2].ports[0].protocol", "FieldValueNotSupported"),
    }


def test_a_pod_keeps_its_spec(kubectl: Kubectl) -> None:
    kubectl.apply(pod())
    refused = kubectl.fails("patch", "pod", "web", "--type=merge", "-p", '{"spec":{"hostNetwork":true}}')
    assert "pod updates may not change fields other than" in refused
    image = '{"spec":{"containers":[{"name":"main","image":"registry.example/web:2"}]}}'
    kubectl("patch", "pod", "web", "-p", image)
    assert kubectl.get("pod", "web")["spec"]["containers"][0]["image"] == "registry.example/web:2"


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "a" * 64])
def test_namespace_names(core: client.CoreV1Api, name: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        core.create_namespace({"metadata": {"name": name}})
    assert ("metadata.name", "FieldValueInvalid") in _causes(refused.value)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 1}, {"port": 2}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 1, "protocol": "ICMP"}]}, "spec.ports[0].protocol"),
        ({"ports": [{"port": 1}], "type": "Internal"}, "spec.type"),
        ({"ports": [{"port": 1}], "externalIPs": ["300.1.1.1"]}, "spec.externalIPs[0]"),
        ({}, "spec.ports"),
    ],
)
def test_services(kubectl: Kubectl, core: client.CoreV1Api, spec: dict[str, Any], path: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_service(kubectl.namespace, {"metadata": {"name": "s"}, "spec": spec})
    assert path in {field for field, _ in _causes(refused.value)}


def test_unknown_fields(kubectl: Kubectl, api: client.ApiClient) -> None:
    path = f"/apis/networking.k8s.io/v1/namespaces/{kubectl.namespace}/networkpolicies"
    unknown = network_policy(bogus=1, ingress=[{"ports": [{"prot": "TCP"}]}])

    def send(validation: str, method: str = "POST", to: str = path) -> tuple[int, str, str]:
        url = f"{api.configuration.host}{to}?fieldValidation={validation}"
        headers: dict[str, str] = {}
        api.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        headers["Content-Type"] = "application/json" if method == "POST" else "application/merge-patch+json"
        answer = api.rest_client.pool_manager.request(method, url, json=unknown, headers=headers)
        return answer.status, answer.data.decode(), answer.headers.get("Warning", "")

    status, body, _ = send("Strict")
    assert status == 400
    assert json.loads(body)["message"] == (
        'NetworkPolicy in version "v1" cannot be handled as a NetworkPolicy: strict decoding error: '
        'unknown field "spec.bogus", unknown field "spec.ingress[0].ports[0].prot"'
    )
    status, body, warning = send("Warn")
    assert status == 201
    assert '299 - "unknown field \\"spec.bogus\\""' in warning
    assert "bogus" not in json.loads(body)["spec"]
    status, body, _ = send("Strict", "PATCH", f"{path}/allow")
    assert status == 422
    message = json.loads(body)["message"]
    assert "strict decoding error: " in message
    assert 'unknown field "spec.bogus"' in message
    assert send("Ignore", "PATCH", f"{path}/allow")[2] == ""


@pytest.mark.usefixtures("modern")
def test_kubectl_asks_for_strict_validation(kubectl: Kubectl) -> None:
    """It does so only where the OpenAPI document says that the server can."""
    unknown = network_policy(bogus=1)
    refused = kubectl.fails("apply", "-f", "-", stdin=unknown)
    assert 'strict decoding error: unknown field "spec.bogus"' in refused
    warned = kubectl.run("apply", "--validate=warn", "-f", "-", stdin=unknown)
    assert 'Warning: unknown field "spec.bogus"' in warned.stderr


def test_unknown_field_in_server_side_apply(kubectl: Kubectl) -> None:
    refused = kubectl.fails("apply", "--server-side", "-f", "-", stdin=network_policy(bogus=1))
    assert ".spec.bogus: field not declared in schema" in refused


def test_wrong_types(kubectl: Kubectl) -> None:
    broken = pod()
    broken["spec"]["containers"] = "none"
    assert (
        'Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field '
        "PodSpec.spec.containers of type []v1.Container"
    ) in kubectl.fails("create", "-f", "-", stdin=broken)


def test_absent_and_taken_names(kubectl: Kubectl, core: client.CoreV1Api) -> None:
    def status(call: Any, *args: Any) -> tuple[int, str, str]:
        with pytest.raises(client.ApiException) as refused:
            call(*args)
        document = json.loads(refused.value.body)
        return refused.value.status, document["reason"], document["message"]

    absent = status(core.read_namespaced_pod, "nobody", kubectl.namespace)
    assert absent == (404, "NotFound", 'pods "nobody" not found')
    nowhere = status(core.create_namespaced_config_map, "no-such-namespace", config_map())
    assert nowhere == (404, "NotFound", 'namespaces "no-such-namespace" not found')
    core.create_namespaced_config_map(kubectl.namespace, config_map())
    taken = status(core.create_namespaced_config_map, kubectl.namespace, config_map())
    assert taken == (409, "AlreadyExists", 'configmaps "settings" already exists')
    misplaced = config_map("other")
    misplaced["metadata"]["namespace"] = "default"
    elsewhere = status(core.create_namespaced_config_map, kubectl.namespace, misplaced)
    assert elsewhere[:2] == (400, "BadRequest")


@pytest.mark.parametrize("body", ["{not json", "[]", "5", '{"kind":"Pod","apiVersion":"v1"}'])
def test_bodies_that_are_no_config_map(kubectl: Kubectl, body: str) -> None:
    path = f"/api/v1/namespaces/{kubectl.namespace}/configmaps"
    assert "BadRequest" in kubectl.fails("create", "--raw", path, "-f", "-", stdin=body)


def test_a_wrong_token_is_refused(kubectl: Kubectl) -> None:
    refused = kubectl.fails("get", "secrets", "--token=wrong")
    assert "You must be logged in to the server" in refused


@pytest.mark.parametrize("address", ["192.0.2.1", "taken"])
def test_cluster_addresses_that_cannot_be_had(kubectl: Kubectl, core: client.CoreV1Api, address: str) -> None:
    if address == "taken":
        address = core.read_namespaced_service("kubernetes", "default").spec.cluster_ip
    service = {"metadata": {"name": "s"}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}}
    with pytest.raises(client.ApiException) as refused:
        core.create_namespaced_service(kubectl.namespace, service)
    assert _causes(refused.value) == {("spec.clusterIPs", "FieldValueInvalid")}
