"""The informer of an optional kind, while its definition comes and goes on the server, by real kubectl."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from felix_py.datastore.client import connect
from felix_py.datastore.decode import Kind
from felix_py.datastore.informer import Reflector
from felix_py.datastore.kinds import CLUSTER_POLICIES
from felix_py.datastore.store import Store
from policy.model import ClusterPolicy
from tests.conformance import conftest
from tests.conformance.conftest import EXTERNAL, Kubectl
from tests.support import waiting
from tests.support.fakeapi import PATIENCE

CRDS = Path(__file__).parents[2] / "manifests" / "crds" / "clusternetworkpolicies.yaml"
KIND: Kind[ClusterPolicy] = CLUSTER_POLICIES
GUARD = {
    "apiVersion": KIND.api_version,
    "kind": KIND.name,
    "metadata": {"name": "guard"},
    "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
}


async def test_policies_are_known_as_soon_as_there_are_any(cluster: Kubectl) -> None:
    if EXTERNAL and cluster.run("get", KIND.name).returncode == 0:
        pytest.skip("the server has these definitions, from elsewhere: they are not ours to exchange")
    api = connect(cluster.kubeconfig)
    store = Store()
    table = store.cluster_policies(KIND)
    reflector = Reflector(api, KIND)

    async def until(names: set[str]) -> None:
        await waiting.until(
            lambda: {name for _, name in table.records} == names and KIND.name not in store.not_listed, PATIENCE
        )

    def is_established() -> bool:
        conditions = "jsonpath={.status.conditions[?(@.type=='Established')].status}"
        return cluster.run("get", "-f", str(CRDS), "-o", conditions).stdout == "True"

    def is_gone() -> bool:
        return "NotFound" in cluster.run("get", "-f", str(CRDS)).stderr

    reflector.start(table.apply)
    try:
        await until(set())
        for _ in range(2):
            await asyncio.to_thread(cluster, "apply", "-f", str(CRDS))
            await asyncio.to_thread(conftest.until, is_established)
            await asyncio.to_thread(cluster, "apply", "-f", "-", stdin=GUARD)
            await until({"guard"})
            # kubectl's own waiting goes by a watch that a real server with an empty cache may serve late.
            await asyncio.to_thread(cluster, "delete", "-f", str(CRDS), "--wait=false")
            await asyncio.to_thread(conftest.until, is_gone)
            await until(set())
    finally:
        await reflector.stop()
        api.close()
