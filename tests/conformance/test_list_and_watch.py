"""Lists and watches as informers use them, through the official client's transport."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import urllib3
from kubernetes import client

from tests.conformance.conftest import Kubectl, config_map, embedded_only, pod

Event = tuple[str, dict[str, Any]]


@contextmanager
def watch(core: client.CoreV1Api, namespace: str, **options: Any) -> Iterator[Iterator[Event]]:
    """Events of a watch on the ConfigMaps of a namespace, decoded."""
    options.setdefault("timeout_seconds", 10)
    response: urllib3.HTTPResponse = core.list_namespaced_config_map(
        namespace, watch=True, _preload_content=False, **options
    )
    try:
        yield _decoded(response)
    finally:
        response.close()
        response.release_conn()


def _decoded(response: urllib3.HTTPResponse) -> Iterator[Event]:
    buffer = b""
    for chunk in response.stream(65536, decode_content=False):
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            yield event["type"], event["object"]


def _brief(event: Event) -> tuple[str, str]:
    return event[0], event[1]["metadata"].get("name", "")


def _create(core: client.CoreV1Api, namespace: str, *names: str, **labels: str) -> None:
    for name in names:
        document = config_map(name)
        document["metadata"]["labels"] = labels
        core.create_namespaced_config_map(namespace, document)


def _raw_list(core: client.CoreV1Api, namespace: str, **options: Any) -> dict[str, Any]:
    answer = core.list_namespaced_config_map(namespace, _preload_content=False, **options)
    found: dict[str, Any] = json.loads(answer.data)
    return found


def test_a_list_in_pages_is_one_moment(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    namespace = kubectl.namespace
    _create(core, namespace, *(f"c{i}" for i in range(5)), page="yes")
    first = _raw_list(core, namespace, limit=2, label_selector="page")
    _create(core, namespace, "c11", page="yes")
    core.delete_namespaced_config_map("c3", namespace)
    names, token = [item["metadata"]["name"] for item in first["items"]], first["metadata"]["continue"]
    while token:
        page = _raw_list(core, namespace, limit=2, label_selector="page", _continue=token)
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
    assert names == ["c0", "c1", "c2", "c3", "c4"]


def test_items_of_builtin_lists_name_no_kind(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    _create(core, kubectl.namespace, "a")
    listed = _raw_list(core, kubectl.namespace)
    assert listed["kind"] == "ConfigMapList"
    assert all("kind" not in item for item in listed["items"])


@pytest.mark.parametrize(
    "options", [{"_continue": "???"}, {"label_selector": "a in b"}, {"field_selector": "nonsense"}]
)
def test_bad_list_parameters(core: client.CoreV1Api, kubectl: Kubectl, options: dict[str, str]) -> None:
    with pytest.raises(client.ApiException) as refused:
        core.list_namespaced_config_map(kubectl.namespace, **options)
    assert refused.value.status == 400


def test_watch_from_a_list(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    namespace = kubectl.namespace
    _create(core, namespace, "before")
    version = _raw_list(core, namespace)["metadata"]["resourceVersion"]
    with watch(core, namespace, resource_version=version) as events:
        _create(core, namespace, "a")
        core.patch_namespaced_config_map("a", namespace, {"data": {"x": "1"}})
        core.patch_namespaced_config_map("a", namespace, {"data": {"x": "1"}})  # changes nothing: no event
        core.delete_namespaced_config_map("a", namespace)
        seen = [next(events) for _ in range(3)]
    assert [_brief(event) for event in seen] == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in seen]
    assert versions == sorted(set(versions))
    assert versions[0] > int(version)
    assert seen[2][1]["data"] == {"x": "1"}
    assert seen[0][1]["kind"] == "ConfigMap"


def test_watch_with_a_selector_translates(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    namespace = kubectl.namespace
    version = _raw_list(core, namespace)["metadata"]["resourceVersion"]

    def label(value: str | None) -> None:
        core.patch_namespaced_config_map("a", namespace, {"metadata": {"labels": {"on": value}}})

    with watch(core, namespace, resource_version=version, label_selector="on=yes") as events:
        _create(core, namespace, "a")
        label("yes")
        core.patch_namespaced_config_map("a", namespace, {"data": {"x": "1"}})
        label("no")
        core.patch_namespaced_config_map("a", namespace, {"data": {"x": "2"}})
        label("yes")
        core.delete_namespaced_config_map("a", namespace)
        kinds = [next(events)[0] for _ in range(5)]
    assert kinds == ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]


def test_watch_with_a_field_selector(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    namespace = kubectl.namespace
    listed = core.list_namespaced_pod(namespace)
    core.create_namespaced_pod(namespace, pod())
    options = {"resource_version": listed.metadata.resource_version, "field_selector": "spec.nodeName=n1"}
    response = core.list_namespaced_pod(
        namespace, watch=True, _preload_content=False, timeout_seconds=10, **options
    )
    binding = {"metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n1"}}
    core.create_namespaced_pod_binding("web", namespace, binding, _preload_content=False).release_conn()
    kind, obj = next(_decoded(response))
    response.close()
    response.release_conn()
    assert (kind, obj["spec"]["nodeName"]) == ("ADDED", "n1")
    core.delete_namespaced_pod("web", namespace, grace_period_seconds=0)


@pytest.mark.usefixtures("serves_watch_list")
def test_watch_list(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    """KEP-3157: the initial state as events, closed by a bookmark."""
    namespace = kubectl.namespace
    _create(core, namespace, "a", "b", on="yes")
    with watch(
        core,
        namespace,
        label_selector="on",
        send_initial_events=True,
        resource_version_match="NotOlderThan",
        allow_watch_bookmarks=True,
    ) as events:
        assert {_brief(next(events)) for _ in range(2)} == {("ADDED", "a"), ("ADDED", "b")}
        kind, bookmark = next(events)
        _create(core, namespace, "c", on="yes")
        later = next(events)
    assert kind == "BOOKMARK"
    assert bookmark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert bookmark["kind"] == "ConfigMap"
    assert _brief(later) == ("ADDED", "c")
    assert int(later[1]["metadata"]["resourceVersion"]) > int(bookmark["metadata"]["resourceVersion"])


def test_watch_list_needs_its_parameters(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    with pytest.raises(client.ApiException) as refused:
        core.list_namespaced_config_map(
            kubectl.namespace, watch=True, send_initial_events=True, _preload_content=False
        )
    assert refused.value.status == 422


def test_a_watch_ends_at_its_timeout(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    version = _raw_list(core, kubectl.namespace)["metadata"]["resourceVersion"]
    with watch(core, kubectl.namespace, resource_version=version, timeout_seconds=1) as events:
        assert list(events) == []


@embedded_only
@pytest.mark.parametrize("version", ["1", str(2**62)])
def test_a_version_that_is_not_known_is_expired(core: client.CoreV1Api, kubectl: Kubectl, version: str) -> None:
    with watch(core, kubectl.namespace, resource_version=version) as events:
        kind, status = next(events)
    assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")


def test_no_event_is_lost_between_list_and_watch(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    namespace, total = kubectl.namespace, 60
    writer = threading.Thread(
        target=_create, args=(core, namespace, *(f"n{i}" for i in range(total))), kwargs={"on": "yes"}
    )
    writer.start()
    listed = _raw_list(core, namespace, label_selector="on")
    seen = [item["metadata"]["name"] for item in listed["items"]]
    with watch(
        core, namespace, label_selector="on", resource_version=listed["metadata"]["resourceVersion"]
    ) as events:
        while len(seen) < total:
            kind, obj = next(events)
            assert kind == "ADDED"
            seen.append(obj["metadata"]["name"])
    writer.join()
    assert sorted(seen) == sorted(f"n{i}" for i in range(total))


def test_update_conflicts(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    _create(core, kubectl.namespace, "a")
    stale = core.read_namespaced_config_map("a", kubectl.namespace)
    core.patch_namespaced_config_map("a", kubectl.namespace, {"data": {"x": "1"}})
    stale.data = {"x": "2"}
    with pytest.raises(client.ApiException) as refused:
        core.replace_namespaced_config_map("a", kubectl.namespace, stale)
    assert (refused.value.status, json.loads(refused.value.body)["reason"]) == (409, "Conflict")


def test_delete_preconditions(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    _create(core, kubectl.namespace, "a")
    other = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="someone-else"))
    with pytest.raises(client.ApiException) as refused:
        core.delete_namespaced_config_map("a", kubectl.namespace, body=other)
    assert refused.value.status == 409
    core.delete_namespaced_config_map("a", kubectl.namespace)


def test_generated_names(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    document = {"metadata": {"generateName": "made-"}}
    names = {core.create_namespaced_config_map(kubectl.namespace, document).metadata.name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("made-") and len(name) == 10 for name in names)


def test_eviction_deletes(core: client.CoreV1Api, kubectl: Kubectl) -> None:
    core.create_namespaced_pod(kubectl.namespace, pod())
    core.create_namespaced_pod_eviction("web", kubectl.namespace, client.V1Eviction(metadata={"name": "web"}))
    assert core.list_namespaced_pod(kubectl.namespace).items == []
