"""The API's JSON -> records: exact results, exact refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from felix_py.datastore.client import ApiError
from felix_py.datastore.decode import Gone, Kind, Unreadable, Unusable
from felix_py.datastore.kinds import NAMESPACES, NODES, PODS, POLICIES, pods
from felix_py.records import NodeRecord
from policy.model import NamedPort, Namespace, NetworkPolicy, Pod, Protocol

Json = dict[str, Any]


def change(kind: Kind[Any], obj: Json, what: str = "ADDED") -> Any:
    return kind.change(json.dumps({"type": what, "object": obj}).encode()).what


def meta(name: str = "x", namespace: str = "ns", **more: Any) -> Json:
    return {"name": name, "namespace": namespace, "uid": "u", "resourceVersion": "7", **more}


# --- pods ------------------------------------------------------------------------------------------------------


def test_pod_whole() -> None:
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta("web", "shop", labels={"tier": "front", "app": "web"}, managedFields=[{"manager": "x"}]),
        "spec": {
            "nodeName": "node-1",
            "containers": [
                {
                    "name": "main",
                    "ports": [
                        {"name": "http", "containerPort": 8080},
                        {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                        {"containerPort": 9},
                    ],
                },
                {"name": "portless", "ports": None},
            ],
            "initContainers": [
                {
                    "name": "sidecar",
                    "restartPolicy": "Always",
                    "ports": [{"name": "proxy", "containerPort": 15001}],
                },
                {"name": "once", "ports": [{"name": "never", "containerPort": 1}]},
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.1.2.3",
            "podIPs": [{"ip": "10.1.2.3"}, {"ip": "FD00:0:0::A"}],
        },
    }
    assert change(PODS, obj) == Pod(
        namespace="shop",
        name="web",
        uid="u",
        node="node-1",
        labels=(("app", "web"), ("tier", "front")),
        addresses=("10.1.2.3", "fd00::a"),
        ports=(
            NamedPort("http", Protocol.TCP, 8080),
            NamedPort("dns", Protocol.UDP, 53),
            NamedPort("proxy", Protocol.TCP, 15001),
        ),
    )


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({}, Pod("ns", "x", "u")),
        ({"spec": {"hostNetwork": True}}, Pod("ns", "x", "u", host_network=True)),
        ({"status": {"phase": "Succeeded"}}, Pod("ns", "x", "u", active=False)),
        ({"status": {"phase": "Failed"}}, Pod("ns", "x", "u", active=False)),
        ({"status": {"phase": "Pending"}}, Pod("ns", "x", "u")),
        ({"status": {"podIP": "10.0.0.1"}}, Pod("ns", "x", "u", addresses=("10.0.0.1",))),
        ({"status": {"podIP": "010.00.0.01"}}, Pod("ns", "x", "u", addresses=("10.0.0.1",))),
        ({"spec": {"containers": None}, "status": {"podIPs": None}}, Pod("ns", "x", "u")),
        (
            {"spec": {"containers": [{"ports": [{"name": "q", "containerPort": 1, "protocol": "QUIC"}]}]}},
            Pod("ns", "x", "u"),
        ),
    ],
)
def test_pod_parts(part: Json, expected: Pod) -> None:
    assert change(PODS, {"metadata": meta(), **part}) == expected


ENDED: Json = {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
RUNS: Json = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
WAITS: Json = {"state": {"waiting": {"reason": "ContainerCreating"}}, "lastState": ENDED["state"]}


@pytest.mark.parametrize(
    ("statuses", "active"),
    [
        ({}, True),  # what is not told has not ended
        ({"containerStatuses": []}, True),
        ({"containerStatuses": [{}]}, True),
        ({"containerStatuses": [{"state": {}}]}, True),
        ({"containerStatuses": [WAITS]}, True),
        ({"containerStatuses": [ENDED, RUNS]}, True),
        ({"containerStatuses": [ENDED], "initContainerStatuses": [ENDED, RUNS]}, True),  # a sidecar
        ({"containerStatuses": [ENDED], "ephemeralContainerStatuses": [RUNS]}, True),
        ({"initContainerStatuses": [ENDED]}, True),
        ({"containerStatuses": [ENDED, ENDED]}, False),
        (
            {"containerStatuses": [ENDED], "initContainerStatuses": [ENDED], "ephemeralContainerStatuses": None},
            False,
        ),
    ],
)
def test_a_deleted_pod_claims_nothing_once_its_containers_have_ended(statuses: Json, active: bool) -> None:
    deleted = meta(deletionTimestamp="2026-01-01T00:00:00Z", deletionGracePeriodSeconds=30)
    found = change(PODS, {"metadata": deleted, "status": {"phase": "Running", **statuses}})
    assert (found.active, found.deleted) == (active, True)
    # One that is not deleted starts them again.
    found = change(PODS, {"metadata": meta(), "status": {"phase": "Running", **statuses}})
    assert (found.active, found.deleted) == (True, False)


@pytest.mark.parametrize(
    ("created", "started", "since"),
    [
        (None, None, ""),
        ("2026-01-01T00:00:00Z", None, "2026-01-01T00:00:00Z"),
        # It may wait for a node for long, and a node's clock may be behind.
        ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"),
        ("2026-01-01T00:00:00Z", "1970-01-01T00:00:09Z", "2026-01-01T00:00:00Z"),
    ],
)
def test_since_when_a_pod_may_have_its_addresses(created: str | None, started: str | None, since: str) -> None:
    obj = {"metadata": meta(creationTimestamp=created), "status": {"startTime": started}}
    assert change(PODS, obj).since == since


@pytest.mark.parametrize(
    ("annotations", "uid"),
    [
        (None, "u"),
        ({}, "u"),
        ({"kubernetes.io/config.source": "api", "kubernetes.io/config.seen": "2026-01-01T00:00:00Z"}, "u"),
        ({"kubernetes.io/config.mirror": "", "kubernetes.io/config.hash": ""}, "u"),
        ({"kubernetes.io/config.hash": "9e107d9d372bb6826bd81d3542a419d6"}, "9e107d9d372bb6826bd81d3542a419d6"),
        # Of the two only config.mirror cannot be changed any more.
        ({"kubernetes.io/config.mirror": "m", "kubernetes.io/config.hash": "edited"}, "m"),
    ],
)
def test_a_mirror_pod_has_the_uid_of_its_static_pod(annotations: Json | None, uid: str) -> None:
    assert change(PODS, {"metadata": meta(annotations=annotations)}).uid == uid


ASKED = {
    "felixpy.io/ipv4-pools": "a,b",
    "cni.projectcalico.org/ipAddrs": '["10.0.0.1"]',
    "felixpy.io/mac": "",
    "kubectl.kubernetes.io/last-applied-configuration": "{}",
}


def test_annotations_on_addresses_are_kept_of_the_nodes_own_pods_alone() -> None:
    kept = (("cni.projectcalico.org/ipAddrs", '["10.0.0.1"]'), ("felixpy.io/ipv4-pools", "a,b"))
    obj = {"metadata": meta(annotations=ASKED), "spec": {"nodeName": "n1"}}
    assert change(pods("n1"), obj).annotations == kept
    assert change(pods("n2"), obj).annotations == ()
    assert change(PODS, obj).annotations == ()
    assert change(pods("n1"), {"metadata": meta(annotations=ASKED)}).annotations == ()


def test_of_a_namespace_those_that_choose_pools() -> None:
    found = change(NAMESPACES, {"metadata": {"name": "shop", "annotations": ASKED}})
    assert found == Namespace("shop", annotations=(("felixpy.io/ipv4-pools", "a,b"),))


@pytest.mark.parametrize(
    ("obj", "reason"),
    [
        ({"metadata": meta(labels={"a": 1})}, "Expected `str`, got `int`"),
        ({"metadata": meta(), "status": {"podIPs": [{"ip": "10.0.0"}]}}, "10.0.0"),
        ({"metadata": meta(), "status": {"podIPs": [{"ip": "10.0.0.1/32"}]}}, "10.0.0.1/32"),
        ({"metadata": meta(), "status": {"podIPs": [{"ip": "010.0.0.256"}]}}, "010.0.0.256"),
        ({"metadata": meta(), "status": {"podIPs": [{"ip": "10.0.0.1\u0000"}]}}, "10.0.0.1"),
        ({"metadata": meta(), "status": {"podIPs": [{"ip": "fe80::1%eth0; reboot"}]}}, "fe80::1%eth0"),
        ({"metadata": meta(), "spec": {"hostNetwork": "yes"}}, "Expected `bool`"),
        ({"metadata": meta(), "spec": "x"}, "Expected `object`"),
        ({"metadata": meta(namespace="")}, "metadata.namespace must not be empty"),
    ],
)
def test_unusable_pod(obj: Json, reason: str) -> None:
    found = change(PODS, obj)
    assert isinstance(found, Unusable)
    assert (found.key, found.uid) == ((obj["metadata"]["namespace"], "x"), "u")
    assert reason in found.reason


def test_equal_parts_of_pods_are_one_object_in_memory() -> None:
    one, two = (
        change(PODS, {"metadata": meta(name, labels={"app": "a", "b": "c"}), "spec": {"nodeName": "node-1"}})
        for name in ("one", "two")
    )
    assert one.labels is two.labels
    assert one.namespace is two.namespace
    assert one.node is two.node


# --- the other kinds -------------------------------------------------------------------------------------------


def test_namespace() -> None:
    assert change(NAMESPACES, {"metadata": meta(namespace="", labels={"b": "1", "a": "2"})}) == Namespace(
        "x", (("a", "2"), ("b", "1"))
    )


def test_node() -> None:
    obj = {
        "metadata": meta("node-1", "", labels={"rack": "r1"}),
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "FD00:1::/64"], "unschedulable": True},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "node-1"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "10.0.0.1"},
                {"type": "InternalIP", "address": "not-an-address"},
                {"type": "InternalIP", "address": "fd00::1"},
                {"type": "ExternalIP", "address": "10.0.0.1"},
            ]
        },
    }
    assert change(NODES, obj) == NodeRecord(
        name="node-1",
        uid="u",
        addresses=("10.0.0.1", "fd00::1", "192.0.2.1"),
        pod_cidrs=("10.1.0.0/24", "fd00:1::/64"),
        labels=(("rack", "r1"),),
        unschedulable=True,
        internal_addresses=("10.0.0.1", "fd00::1"),
    )


def test_node_of_an_old_server_has_one_pod_cidr() -> None:
    assert change(NODES, {"metadata": meta(), "spec": {"podCIDR": "10.1.0.0/24"}}).pod_cidrs == ("10.1.0.0/24",)
    assert change(NODES, {"metadata": meta()}).pod_cidrs == ()


def test_leading_zeros_in_a_node() -> None:
    status = {"addresses": [{"type": "InternalIP", "address": "010.0.0.001"}]}
    found = change(NODES, {"metadata": meta(), "spec": {"podCIDRs": ["010.001.0.0/024"]}, "status": status})
    assert (found.pod_cidrs, found.addresses) == (("10.1.0.0/24",), ("10.0.0.1",))


@pytest.mark.parametrize("cidr", ["10.1.0.0/33", "x", "10.1.0.0/24\n-A INPUT", "fe80::%; x/64"])
def test_node_with_a_bad_pod_cidr_is_unusable(cidr: str) -> None:
    found = change(NODES, {"metadata": meta("node-1", ""), "spec": {"podCIDRs": [cidr]}})
    assert isinstance(found, Unusable)
    assert found.key == ("", "node-1")


def test_network_policy() -> None:
    found = change(
        POLICIES, {"metadata": meta("deny", "shop"), "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}
    )
    assert isinstance(found, NetworkPolicy)
    assert found.key == ("shop", "deny")
    assert found.ingress == ()


def test_network_policy_that_is_rejected_is_unusable() -> None:
    found = change(POLICIES, {"metadata": meta("no name", "shop"), "spec": {"podSelector": {}}})
    assert isinstance(found, Unusable)
    assert (found.key, found.uid) == (("shop", "no name"), "u")
    assert "no name" in found.reason


@pytest.mark.parametrize("spec", [5, None, {"podSelector": 5}, {"podSelector": {}, "ingress": "x"}])
def test_network_policy_that_is_malformed_denies_and_says_why(spec: object) -> None:
    found = change(POLICIES, {"metadata": meta("odd", "shop"), "spec": spec})
    assert isinstance(found, NetworkPolicy)
    assert found.ingress == ()
    assert bool(found.problems) == (spec is not None), "null means absent, which is the default policy"


# --- lists and watch lines -------------------------------------------------------------------------------------


def test_listing() -> None:
    body = {
        "metadata": {"resourceVersion": "42", "continue": "more"},
        "items": [{"metadata": meta("a", "")}, {"metadata": {"name": 5}}, 7, {"metadata": meta("b", "")}],
    }
    page = NAMESPACES.listing(json.dumps(body).encode())
    assert (page.resource_version, page.continue_token) == ("42", "more")
    assert page.found[0] == Namespace("a")
    assert page.found[3] == Namespace("b")
    nameless = page.found[1:3]
    assert all(isinstance(item, Unusable) and item.key == ("", "") for item in nameless)


def test_empty_list_is_null_in_go() -> None:
    assert NAMESPACES.listing(b'{"metadata":{"resourceVersion":"1"},"items":null}').found == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"items":[]}', b'{"metadata":{},"items":{}}', b"<html>"])
def test_unreadable_list(body: bytes) -> None:
    with pytest.raises(Unreadable):
        PODS.listing(body)


def test_deleted_needs_only_the_name() -> None:
    assert change(PODS, {"metadata": meta(labels={"a": 5})}, "DELETED") == Gone(("ns", "x"))
    assert change(NODES, {"metadata": {"name": "n"}}, "DELETED") == Gone(("", "n"))


@pytest.mark.parametrize(("annotations", "end"), [(None, False), ({"k8s.io/initial-events-end": "true"}, True)])
def test_bookmark(annotations: dict[str, str] | None, end: bool) -> None:
    metadata = {"resourceVersion": "9", "annotations": annotations}
    line = PODS.change(json.dumps({"type": "BOOKMARK", "object": {"metadata": metadata}}).encode())
    assert (line.what, line.resource_version, line.initial_end) == (None, "9", end)


def test_error_event() -> None:
    status = {
        "code": 504,
        "reason": "Timeout",
        "message": "Too large resource version: 9, current: 5",
        "details": {"causes": [{"reason": "ResourceVersionTooLarge"}], "retryAfterSeconds": 1},
    }
    with pytest.raises(ApiError) as caught:
        change(PODS, status, "ERROR")
    error = caught.value
    assert (error.status, error.reason, error.retry_after) == (504, "ResourceVersionTooLarge", 1.0)


@pytest.mark.parametrize(
    "line", [b"", b"{", b"5", b'{"type":"ADDED"}', b'{"type":"DELETED","object":{}}', b'{"type":"x","object":{}}']
)
def test_unreadable_line(line: bytes) -> None:
    with pytest.raises(Unreadable):
        PODS.change(line)
