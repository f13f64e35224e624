"""Services and EndpointSlices as BGP needs them: what is read of the objects, and when they are watched."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bgp.services import Endpoints, Service
from felix_py.datastore.client import Api
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.decode import Unusable
from felix_py.datastore.kinds import NODES
from felix_py.datastore.service_kinds import SERVICES, endpoint_slices
from policy.change import Change
from tests.support import fakeapi, faults
from tests.support.fakeapi import PATIENCE, FakeApi, Json
from tests.support.waiting import until
from tests.support.watching import QUICK, configuration


def decoded(kind: Any, obj: Json) -> Any:
    return kind.single(json.dumps(obj).encode())


def service(name: str, spec: Json, *ingress: Json) -> Json:
    status = {"loadBalancer": {"ingress": list(ingress)} if ingress else {}}
    return {"metadata": {"name": name, "namespace": "shop"}, "spec": spec, "status": status}


def test_a_service_s_addresses() -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1", "FD00:96::1"],
        "externalIPs": ["192.0.2.7", "no address"],
        "externalTrafficPolicy": "Local",
    }
    ingress = [{"ip": "192.0.2.9"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "lb.example"}]
    assert decoded(SERVICES, service("web", spec, *ingress)) == Service(
        "shop", "web", True, ("10.96.0.1", "fd00:96::1"), ("192.0.2.7",), ("192.0.2.9",)
    )
    assert decoded(SERVICES, service("web", {"clusterIP": "10.96.0.1"})) == Service(
        "shop", "web", False, ("10.96.0.1",)
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"clusterIP": "None", "clusterIPs": ["None"], "externalIPs": ["192.0.2.7"]},
        {"type": "ExternalName", "externalName": "a.example", "externalIPs": ["192.0.2.7"]},
        {"type": "Novel", "clusterIP": "10.96.0.1"},
        {},
    ],
)
def test_what_has_no_address_of_its_own_is_not_announced(spec: Json) -> None:
    assert decoded(SERVICES, service("web", spec)) == Service("shop", "web")


def endpoints(*found: Json, kind: str = "IPv4", **metadata: Any) -> Json:
    labels = {"kubernetes.io/service-name": "web"}
    meta = {"name": "web-1", "namespace": "shop", "labels": labels, **metadata}
    return {"metadata": meta, "addressType": kind, "endpoints": list(found)}


def at(node: str | None, **conditions: bool | None) -> Json:
    return {"addresses": ["10.1.0.2"], "nodeName": node, "conditions": conditions}


READY, SERVING, ENDING = {"ready": True}, {"ready": False, "serving": True}, {"terminating": True}


@pytest.mark.parametrize(
    ("found", "flags"),
    [
        ((), ()),
        ((at("n1", **READY),), ("ready_here",)),
        ((at("n1"),), ("ready_here",)),  # null: ready
        (({"addresses": ["10.1.0.2"], "nodeName": "n1"},), ("ready_here",)),
        ((at("n1", ready=None, serving=None, terminating=None),), ("ready_here",)),
        ((at("n1", ready=False),), ()),
        ((at("n1", **SERVING),), ()),  # not ready, not terminating: kube-proxy does not use it
        ((at("n1", **SERVING, **ENDING),), ("terminating_here",)),
        ((at("n1", ready=False, serving=False, terminating=True),), ()),
        ((at("n1", ready=False, terminating=True),), ()),  # serving null: as ready
        ((at("n1", ready=True, terminating=True),), ("ready_here",)),  # publishNotReadyAddresses
        ((at("n2", **READY), at(None, **SERVING, **ENDING)), ("ready_elsewhere", "terminating_elsewhere")),
        ((at("n1", **READY), at("n2", **READY)), ("ready_here", "ready_elsewhere")),
    ],
)
def test_endpoints_that_count(found: tuple[Json, ...], flags: tuple[str, ...]) -> None:
    wanted = Endpoints("shop", "web-1", "web", 4, **dict.fromkeys(flags, True))
    assert decoded(endpoint_slices("n1"), endpoints(*found)) == wanted


def test_slices_that_are_odd() -> None:
    kind = endpoint_slices("n1")
    assert decoded(kind, endpoints(kind="FQDN")).version == 0
    assert decoded(kind, endpoints(kind="IPv6")).version == 6
    assert decoded(kind, endpoints(labels=None)).service == ""
    assert decoded(kind, {**endpoints(), "endpoints": None}) == Endpoints("shop", "web-1", "web", 4)
    assert isinstance(decoded(kind, {**endpoints(), "endpoints": 5}), Unusable)
    assert isinstance(decoded(SERVICES, {"metadata": {"name": "x"}}), Unusable)


@pytest.mark.parametrize(
    ("annotations", "taints", "drain"),
    [
        (None, None, ""),
        ({"felixpy.io/bgp-drain": "true"}, None, "true"),
        ({"felixpy.io/bgp-drain": "false"}, [], ""),
        (
            {"felixpy.io/bgp-drain": "2026-11-27T18:00:00Z"},
            [{"key": "felixpy.io/bgp-drain"}],
            "2026-11-27T18:00:00Z",
        ),
        ({"other": "true"}, [{"key": "other", "effect": "NoSchedule"}], ""),
        (None, [{"key": "felixpy.io/bgp-drain", "effect": "NoSchedule"}], "taint"),
    ],
)
def test_a_node_says_that_it_is_being_drained(
    annotations: Json | None, taints: list[Json] | None, drain: str
) -> None:
    node = {"metadata": {"name": "n1", "annotations": annotations}, "spec": {"taints": taints}}
    assert decoded(NODES, node).drain == drain


async def test_nothing_is_asked_for_before_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[Change[Any]] = []
    listed: list[bool] = []
    with FakeApi() as server:
        server.serve(fakeapi.SERVICES)
        server.serve(fakeapi.SLICES)
        server.put(fakeapi.SERVICES, service("web", {"clusterIP": "10.96.0.1"}))
        cluster = Cluster(Api(lambda: configuration(server)), node_name="n1", timing=QUICK)
        objects = cluster.services
        objects.subscribe(changes.extend, lambda: listed.append(objects.listed()))
        cluster.start()
        try:
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            asked = [request.path for request in server.requests]
            assert not {fakeapi.SERVICES, fakeapi.SLICES} & set(asked)
            assert objects.listed()
            assert not objects.ages()
            objects.want(endpoints=False)
            assert not objects.listed()
            await until(lambda: listed == [True])
            assert [change.after for change in changes] == [Service("shop", "web", False, ("10.96.0.1",))]
            assert not server.verbs(fakeapi.SLICES)
            server.fault("*", faults.refuse(403, "Forbidden"), path=fakeapi.SLICES)
            server.put(fakeapi.SLICES, endpoints(at("n1")))
            objects.want(endpoints=True)
            objects.want(endpoints=True)
            assert not objects.listed()
            await until(objects.listed)
            assert changes[-1].after == Endpoints("shop", "web-1", "web", 4, ready_here=True)
            server.delete(fakeapi.SLICES, "shop", "web-1")
            await until(lambda: changes[-1].after is None)
            assert {"Service", "EndpointSlice"} <= cluster.ages().keys()
            selectors = {r.query.get("labelSelector") for r in server.requests if r.path == fakeapi.SLICES}
            assert selectors == {"!service.kubernetes.io/headless"}
        finally:
            await cluster.stop()
