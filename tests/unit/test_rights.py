"""The agent asks for nothing that manifests/base/rbac.yaml does not grant, and nothing is granted that it never
asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from felix_py.agent.block_writer import BlockWriter
from felix_py.datastore import conditions
from felix_py.datastore.block_objects import BlockObjects
from felix_py.datastore.client import Api, ApiError
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.fetch import configurations, container_ports, fetch
from felix_py.datastore.leases import Leases
from felix_py.datastore.load_balancers import write_ingress
from felix_py.datastore.status_writer import Offer
from felix_py.ipam.blocks import Act, Step
from felix_py.layout import LEASE
from felix_py.records import LeaderLease, LoadBalancer
from policy.model import PolicyKind, PolicyRef
from tests.support.fakeapi import (
    ADMIN_POLICIES,
    BASELINE_ADMIN_POLICIES,
    BGP_CONFIGURATIONS,
    BGP_FILTERS,
    BGP_PEERS,
    BLOCK_AFFINITIES,
    CLUSTER_POLICIES,
    CONFIGURATIONS,
    DEFINITIONS,
    IP_POOLS,
    IP_RESERVATIONS,
    IPAM_BLOCKS,
    NODE_STATUSES,
    NODES,
    PATIENCE,
    PODS,
    POLICIES,
    SECRETS,
    SERVICES,
    SLICES,
    FakeApi,
    Json,
    Request,
    pod,
)
from tests.support.watching import QUICK, configuration

RBAC = Path(__file__).parents[2] / "manifests" / "base" / "rbac.yaml"
IPAM = (IPAM_BLOCKS, BLOCK_AFFINITIES)
OWN = (CONFIGURATIONS, BGP_CONFIGURATIONS, BGP_PEERS, BGP_FILTERS, IP_POOLS, IP_RESERVATIONS, *IPAM)
PASSWORDS = "felix-py-bgp-passwords"
PASSWORDS_PATH = "/api/v1/namespaces/kube-system/secrets"
CRDS = (CLUSTER_POLICIES, ADMIN_POLICIES, BASELINE_ADMIN_POLICIES)

Right = tuple[str, str, str, str]
"""(API group, resource with its subresource, name or "", verb)."""


def granted() -> set[Right]:
    roles = [one for one in yaml.safe_load_all(RBAC.read_text()) if one["kind"] in ("ClusterRole", "Role")]
    return {
        (group, resource, name, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def needed(request: Request) -> Iterator[Right]:
    """What kube-apiserver makes of a request (RequestInfoFactory); what is no resource needs no right of ours."""
    parts = request.path.strip("/").split("/")
    group = parts.pop(1) if parts[0] == "apis" and len(parts) > 1 else ""
    parts = parts[2:]
    if not parts:
        return
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    resource = "/".join([parts[0], *parts[2:]])
    selected = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
    if request.method == "GET":
        verb = "get" if len(parts) > 1 else "watch" if "watch" in request.query else "list"
    else:
        verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}[request.method]
    # Names count only where they restrict: nobody's rights to pods do.
    restricted = group == "apiextensions.k8s.io" or resource == "secrets"
    if resource == "leases" and len(parts) > 1:
        restricted, selected = True, parts[1]
    yield (group, resource, selected if restricted else "", verb)


def broken(name: str) -> Json:
    """A policy with a part that cannot be applied, so that Events and conditions are written."""
    egress = [{"action": "Deny", "to": [{"domainNames": ["a.example"]}]}]
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": egress}
    return {"metadata": {"name": name, "uid": f"uid-{name}", "generation": 1}, "spec": spec}


def watched(path: str) -> str:
    """The field selector of a kind's definition."""
    group, _, plural = path.split("/")[2:]
    return f"metadata.name={plural}.{group}"


def definitions_watched(server: FakeApi) -> set[str]:
    return {
        request.query.get("fieldSelector", "")
        for request in server.requests
        if request.path == DEFINITIONS and "watch" in request.query
    }


async def everything_that_an_agent_asks_for(server: FakeApi) -> None:
    """A start on a server without CRDs and WatchList, the CRDs' coming, problems on everything, the node's
    condition."""
    server.put(NODES, {"metadata": {"name": "node-1"}})
    for path in (SERVICES, SLICES):
        server.serve(path)
    server.put(POLICIES, {"metadata": {"name": "bad", "namespace": "shop", "uid": "u"}, "spec": {"ingress": 5}})
    server.put(PODS, pod("web", "shop"))
    client = Api(lambda: configuration(server))
    cluster = Cluster(client, node_name="node-1", timing=QUICK)
    cluster.start()
    try:
        async with asyncio.timeout(PATIENCE):
            await cluster.in_sync()
        cluster.block_objects.want()
        await asyncio.to_thread(server.wait_for, lambda: {*map(watched, IPAM)} <= definitions_watched(server))
        for path in CRDS:
            server.install(path)
            server.put(path, broken("default"))
        for path in OWN:
            server.install(path)
        server.serve(SECRETS)
        server.put(
            SECRETS, {"metadata": {"name": PASSWORDS, "namespace": "kube-system"}, "data": {"tor": "eA=="}}
        )
        cluster.secrets.want({PASSWORDS})
        server.install(NODE_STATUSES)
        cluster.services.want(endpoints=True)
        cluster.statuses.offer(Offer("uid", {"conditions": []}, None))
        cluster.warn(PolicyRef(PolicyKind.NETWORK, "shop", "bad"), "Refused", "by the test")
        await cluster.set_network_available("node-1")
        await asyncio.to_thread(
            server.wait_for,
            lambda: (
                len(server.events) >= 2
                and all(server.objects[path, "", "default"].get("status") for path in CRDS)
                and bool(server.objects.get((NODE_STATUSES, "", "node-1"), {}).get("status"))
                and all(
                    any(verb.startswith("watch") for verb in server.verbs(path))
                    for path in (*OWN, SERVICES, SLICES, PASSWORDS_PATH)
                )
            ),
        )
        async with asyncio.timeout(PATIENCE):
            while cluster.secrets.known() != {PASSWORDS: {"tor": "x"}}:
                cluster.secrets.changed.clear()
                await cluster.secrets.changed.wait()
        what_a_leader_writes(client)
        await claim_and_give_back(client, cluster.block_objects)
        fetch(client)
        configurations(client)
        container_ports(client, ("shop", "web"))
    finally:
        await cluster.stop()


def what_a_leader_writes(client: Api) -> None:
    """Nothing of it is there."""
    leases = Leases(client, "kube-system", LEASE, PATIENCE)
    held = LeaderLease("n", 15.0, "", "")
    service = LoadBalancer(namespace="shop", name="web")
    leases.read()
    for write in (
        partial(leases.write, held),
        partial(leases.write, replace(held, version="1")),
        partial(write_ingress, client, service, [], PATIENCE),
    ):
        with pytest.raises(ApiError, match="404"):
            write()


async def claim_and_give_back(client: Api, objects: BlockObjects) -> None:
    """Each step that an agent takes about a block of its own."""
    writer, cidr = BlockWriter(client, "node-1"), "10.0.0.0/26"
    for step in (Step.WANT, Step.TAKE, Step.CONFIRM, Step.ADOPT, Step.MARK, Step.DELETE, Step.FORGET):
        block = next(iter(objects.blocks.records.values()), None)
        affinity = next(iter(objects.affinities.records.values()), None)
        for table in (objects.blocks, objects.affinities):
            table.changed.clear()
        await asyncio.to_thread(writer.carry_out, Act(step, cidr, block, affinity), "another-uid")
        changes = [asyncio.create_task(t.changed.wait()) for t in (objects.blocks, objects.affinities)]
        done, rest = await asyncio.wait(changes, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert done, step
        for task in rest:
            task.cancel()


async def test_rights_are_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "LOOK", (0.0, 0.1))
    asked: set[Right] = set()
    for watch_list in (True, False):
        with FakeApi(watch_list=watch_list) as server:
            await everything_that_an_agent_asks_for(server)
            asked |= {right for request in server.requests for right in needed(request)}
    # A count is raised after ten minutes; that writer's own tests do so.
    asked.add(("", "events", "", "patch"))
    assert asked - granted() == set(), "asked for, but not granted"
    assert granted() - asked == set(), "granted, but never asked for"
