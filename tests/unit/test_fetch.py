"""The cluster listed once, for commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.fetch import Fetched, container_ports, fetch
from policy.model import Node, PolicyKind, PolicyRef, Protocol
from tests.support import faults
from tests.support.fakeapi import (
    ADMIN_POLICIES,
    CLUSTER_POLICIES,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
    SPOILT,
    FakeApi,
    Json,
    pod,
)
from tests.support.watching import configuration


@contextmanager
def server() -> Iterator[tuple[FakeApi, Api]]:
    with FakeApi() as fake:
        fake.put(NAMESPACES, {"metadata": {"name": "shop"}})
        addresses = [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]
        fake.put(NODES, {"metadata": {"name": "n1", "labels": {"a": "b"}}, "status": {"addresses": addresses}})
        fake.put(POLICIES, {"metadata": {"name": "deny", "namespace": "shop"}, "spec": {"podSelector": {}}})
        api = Api(lambda: configuration(fake))
        yield fake, api
        api.close()


def fetched() -> Fetched:
    with server() as (_, api):
        return fetch(api)


def cluster_policy(name: str, **spec: object) -> Json:
    return {
        "metadata": {"name": name, "uid": "u"},
        "spec": {"priority": 1, "subject": {"namespaces": {}}, **spec},
    }


def test_kinds_that_are_not_installed_are_empty() -> None:
    found = fetched()
    assert [policy.ref for policy in found.policies] == [PolicyRef(PolicyKind.NETWORK, "shop", "deny")]
    assert found.problems == []


def test_nodes_reach_the_oracle() -> None:
    assert list(fetched().snapshot().nodes()) == [Node("n1", (("a", "b"),), ("192.0.2.1",))]


def test_policies_of_all_kinds_and_their_problems() -> None:
    with server() as (fake, api):
        for collection in (CLUSTER_POLICIES, ADMIN_POLICIES):
            fake.install(collection)
        fake.put(CLUSTER_POLICIES, cluster_policy("guard", tier="Admin"))
        fake.put(ADMIN_POLICIES, cluster_policy("guard", tier="Admin"))
        found = fetch(api)
    refs = [policy.ref for policy in found.policies]
    assert refs[1:] == [PolicyRef(PolicyKind.CLUSTER, "", "guard"), PolicyRef(PolicyKind.ADMIN, "", "guard")]
    (problem,) = found.problems
    assert (problem.kind, problem.key, problem.uid) == ("AdminNetworkPolicy", ("", "guard"), "u")
    assert problem.reason.startswith("spec: unknown field 'tier'")
    assert [policy.ref for policy in found.snapshot().cluster_policies()] == refs[1:]


def test_pages() -> None:
    with server() as (fake, api):
        for number in range(1001):
            fake.put(PODS, pod(f"p{number}", "shop"))
        assert len(fetch(api).pods) == 1001
        assert fake.verbs(PODS) == ["list", "page", "page"]


@pytest.mark.parametrize(("path", "code"), [(PODS, 404), (NODES, 404), (CLUSTER_POLICIES, 403), (PODS, 500)])
def test_what_cannot_be_listed_is_an_error_and_not_nothing(path: str, code: int) -> None:
    with server() as (fake, api):
        fake.fault("list", faults.refuse(code), path=path)
        with pytest.raises(ApiError, match=str(code)):
            fetch(api)


def test_a_kind_that_a_starting_server_does_not_find_yet_is_not_taken_for_one_that_is_not_there() -> None:
    with server() as (fake, api):
        fake.install(CLUSTER_POLICIES)
        fake.fault("list", faults.refuse(404, "NotFound"), path=CLUSTER_POLICIES)
        with pytest.raises(ApiError, match="404"):
            fetch(api)
        assert PolicyKind.CLUSTER.value not in fetch(api).absent


def test_a_kind_whose_definition_may_not_be_read_is_there_if_it_is_found() -> None:
    with server() as (fake, api):
        fake.definitions = False
        assert fetch(api).absent >= {PolicyKind.CLUSTER.value, PolicyKind.ADMIN.value}


def test_ports_of_a_pod_come_by_the_right_to_list_pods() -> None:
    with server() as (fake, api):
        ports = [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80}]
        fake.put(PODS, pod("web", "shop") | {"spec": {"containers": [{"ports": ports}]}})
        fake.put(PODS, pod("web", "dev"))
        assert container_ports(api, ("shop", "web")) == [(Protocol.TCP, 80), (Protocol.UDP, 53)]
        assert [request.verb for request in fake.requests] == ["list"]
        with pytest.raises(ApiError, match="404"):
            container_ports(api, ("shop", "gone"))
        fake.spoilt = b'"\xff"'
        fake.put(PODS, pod("odd", "shop") | {"spec": SPOILT})
        with pytest.raises(Unreachable, match="not a list of pods"):
            container_ports(api, ("shop", "odd"))
