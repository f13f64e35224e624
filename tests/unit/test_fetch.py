"""The cluster listed once, for commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from felix_py.datastore.client import Api, ApiError
from felix_py.datastore.fetch import Fetched, fetch
from policy.model import Node, PolicyKind, PolicyRef
from tests.support import faults
from tests.support.fakeapi import (
    ADMIN_POLICIES,
    CLUSTER_POLICIES,
    NAMESPACES,
    NODES,
    PODS,
    POLICIES,
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
