"""All of it together: the kinds, in-sync, problems, ages, the node's condition, stopping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from felix_py.datastore import conditions
from felix_py.datastore.client import Api, ApiError
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.informer import Sink, Timing
from felix_py.datastore.outage import Outage
from felix_py.datastore.store import Mark, Record
from policy.change import Change
from policy.model import ObjectKey, Pod, PolicyKind, PolicyRef
from tests.support import faults
from tests.support.fakeapi import (
    CLUSTER_POLICIES,
    NAMESPACES,
    NODES,
    PATIENCE,
    PODS,
    POLICIES,
    FakeApi,
    Json,
    pod,
)
from tests.support.waiting import until
from tests.support.watching import QUICK, configuration


class Invalid(list[tuple[str, ObjectKey, str]]):
    """What the cluster reported."""

    def __call__(self, kind: str, key: ObjectKey, reason: str) -> None:
        self.append((kind, key, reason))


@asynccontextmanager
async def running(
    server: FakeApi, invalid: Invalid | None = None
) -> AsyncIterator[tuple[Cluster, list[Change[Record]]]]:
    api = Api(lambda: configuration(server))
    cluster = Cluster(api, node_name="node-1", timing=QUICK, on_invalid=invalid)
    events: list[Change[Record]] = []
    cluster.store.subscribe(events.extend)
    cluster.start()
    try:
        yield cluster, events
    finally:
        await cluster.stop()


def populated(server: FakeApi) -> None:
    server.put(NAMESPACES, {"metadata": {"name": "shop", "labels": {"team": "a"}}})
    server.put(NODES, {"metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.1.0.0/24"]}})
    server.put(
        POLICIES, {"metadata": {"name": "deny", "namespace": "shop", "uid": "u"}, "spec": {"podSelector": {}}}
    )
    server.put(PODS, pod("web", "shop", ip="10.1.0.2"))


async def test_in_sync_means_that_the_handlers_have_everything() -> None:
    with FakeApi() as server:
        populated(server)
        async with running(server) as (cluster, events):
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            assert {type(e.after).__name__ for e in events if e.after is not None} == {
                "Pod",
                "Namespace",
                "NetworkPolicy",
                "NodeRecord",
            }
            assert cluster.store.nodes.records["", "node-1"].pod_cidrs == ("10.1.0.0/24",)


async def test_not_in_sync_while_one_kind_is_missing() -> None:
    with FakeApi() as server:
        populated(server)
        server.fault("watchlist", faults.hang, path=POLICIES)
        async with running(server) as (cluster, events):
            async with asyncio.timeout(PATIENCE):
                await until(lambda: cluster.store.not_listed == ("NetworkPolicy",))
            assert not cluster.store.in_sync.is_set()
            assert len(events) == 3
            server.break_connections()
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()


async def test_problem_becomes_an_event_on_the_object_and_a_report() -> None:
    invalid = Invalid()
    with FakeApi() as server:
        populated(server)
        server.put(PODS, pod("odd", "shop", ip="nowhere"))
        async with running(server, invalid) as (cluster, _):
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            assert [(kind, key) for kind, key, _ in invalid] == [("Pod", ("shop", "odd"))]
            await asyncio.to_thread(server.wait_for, lambda: bool(server.events))
            ((namespace, _), event) = next(iter(server.events.items()))
            assert namespace == "shop"
            assert event["reason"] == "InvalidPod"
            assert event["involvedObject"]["uid"] == "uid-odd"
            assert "nowhere" in event["message"]


async def test_cluster_policies_with_problems_get_an_event_and_a_condition_until_they_are_mended() -> None:
    def policy(*peers: Json) -> Json:
        egress = [{"action": "Deny", "to": list(peers)}]
        spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": egress}
        return {"metadata": {"name": "guard", "uid": "uid-guard"}, "spec": spec}

    def accepted() -> str:
        status = server.objects[CLUSTER_POLICIES, "", "guard"].get("status", {})
        return next((one["status"] for one in status.get("conditions", [])), "")

    with FakeApi() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "LOOK", (0.0, 0.01))
        server.install(CLUSTER_POLICIES)
        server.put(CLUSTER_POLICIES, policy({"networks": ["10.0.0.0/8"]}, {"domainNames": ["a.example"]}))
        async with running(server) as (cluster, _):
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            await asyncio.to_thread(server.wait_for, lambda: bool(server.events) and accepted() == "False")
            ((namespace, _), event) = next(iter(server.events.items()))
            assert namespace == "default"
            assert (event["type"], event["reason"]) == ("Warning", "InvalidClusterNetworkPolicy")
            assert event["involvedObject"] == {
                "kind": "ClusterNetworkPolicy",
                "apiVersion": "policy.networking.k8s.io/v1alpha2",
                "name": "guard",
                "uid": "uid-guard",
            }
            assert event["message"].startswith("spec.egress[0].to[1].domainNames: felix-py does not watch DNS")
            assert [problem.kind for problem in cluster.store.problems] == ["ClusterNetworkPolicy"]
            status = server.objects[CLUSTER_POLICIES, "", "guard"]["status"]
            server.put(CLUSTER_POLICIES, policy({"networks": ["10.0.0.0/8"]}) | {"status": status})
            await asyncio.to_thread(server.wait_for, lambda: accepted() == "True")
            assert cluster.store.problems == []
            assert len(server.events) == 1, "nothing is told of what was mended"


async def test_warnings_on_policies_name_the_object() -> None:
    with FakeApi() as server:
        populated(server)
        async with running(server) as (cluster, _):
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            cluster.warn(PolicyRef(PolicyKind.NETWORK, "shop", "deny"), "NotEnforced", "why")
            cluster.warn(PolicyRef(PolicyKind.ADMIN, "", "gone"), "NotEnforced", "why")
            await asyncio.to_thread(server.wait_for, lambda: len(server.events) == 2)
            involved = {namespace: event["involvedObject"] for (namespace, _), event in server.events.items()}
            assert involved["shop"]["uid"] == "u"
            assert involved["default"] == {
                "kind": "AdminNetworkPolicy",
                "apiVersion": "policy.networking.k8s.io/v1alpha1",
                "name": "gone",
            }


async def test_ages() -> None:
    with FakeApi() as server:
        async with running(server) as (cluster, _):
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            ages = cluster.ages()
            cluster_scoped = {"ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"}
            own = {"FelixConfiguration", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool", "IPReservation"}
            assert set(ages) == {"Pod", "Namespace", "NetworkPolicy", "Node"} | cluster_scoped | own
            assert all(0 <= age < PATIENCE for age in ages.values())


async def test_set_network_available_keeps_the_kubelet_s_conditions() -> None:
    ready = {"type": "Ready", "status": "True"}
    cloud = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    with FakeApi() as server:
        server.put(NODES, {"metadata": {"name": "node-1"}, "status": {"conditions": [ready, cloud]}})
        async with running(server) as (cluster, _):
            await cluster.set_network_available("node-1")
            conditions = server.objects[NODES, "", "node-1"]["status"]["conditions"]
            assert conditions[0] == ready
            condition = conditions[1]
            assert (condition["type"], condition["status"], condition["reason"]) == (
                "NetworkUnavailable",
                "False",
                "FelixPyIsUp",
            )
            with pytest.raises(ApiError, match="404"):
                await cluster.set_network_available("no-such-node")


async def test_stop_before_the_server_was_ever_there() -> None:
    with FakeApi() as server:
        server.refuse()
        async with running(server):
            await asyncio.sleep(0)
        server.listen()


async def test_pods_from_another_source() -> None:
    class Published:
        """Two pods, from nowhere."""

        def start(self, sink: Sink[Pod]) -> None:
            pods: Sequence[Pod | Mark] = (Mark.LIST_BEGIN, Pod("a", "b"), Pod("a", "c"), Mark.LIST_END)
            asyncio.get_running_loop().call_soon(sink, pods)

        async def stop(self) -> None: ...

        def age(self) -> float:
            return 7.0

    def source(_api: Api, _timing: Timing, _outage: Outage, _node: str) -> Published:
        return Published()

    with FakeApi() as server:
        cluster = Cluster(Api(lambda: configuration(server)), node_name="node-1", timing=QUICK, pod_source=source)
        cluster.start()
        async with asyncio.timeout(PATIENCE):
            await cluster.in_sync()
        assert set(cluster.store.pods.records) == {("a", "b"), ("a", "c")}
        assert cluster.ages()["Pod"] == 7.0
        assert server.verbs(PODS) == []
        await cluster.stop()
