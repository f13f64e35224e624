"""``felix-py explain`` of Service addresses and ports: policy is not asked about these."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support import fakeapi, faults
from tests.unit.test_explain_command import ALLOWED, UNKNOWN, WRONG, Shop, shop

__all__ = ["shop"]

PG, ADMIN = {"name": "pg", "port": 15432, "nodePort": 30432}, {"name": "admin", "port": 9, "protocol": "UDP"}
JUDGED = "policy judges packets where kube-proxy sends them:"


def service(name: str, *ports: dict[str, Any], **spec: Any) -> dict[str, Any]:
    ingress = spec.pop("ingress", [])
    status = {"loadBalancer": {"ingress": ingress}}
    return {
        "metadata": {"namespace": "shop", "name": name},
        "spec": {**spec, "ports": list(ports)},
        "status": status,
    }


def endpoint(address: str, pod: str = "", *, ready: bool | None = True) -> dict[str, Any]:
    target = {"targetRef": {"kind": "Pod", "namespace": "shop", "name": pod}} if pod else {}
    return {"addresses": [address], "conditions": {"ready": ready}, **target}


def ends(of: str, name: str, ports: list[dict[str, Any]], *endpoints: dict[str, Any]) -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": of}
    meta = {"namespace": "shop", "name": name, "labels": labels}
    return {"metadata": meta, "addressType": "IPv4", "ports": ports, "endpoints": list(endpoints)}


@pytest.fixture
def served(shop: Shop) -> Shop:
    """A Service whose pods have different numbers for its named port, as a rollout may have it."""
    addresses = {
        "clusterIP": "10.96.0.5",
        "clusterIPs": ["10.96.0.5", "FD00:96:0::5"],
        "externalIPs": ["192.0.2.1"],
    }
    balancer = [{"ip": "198.51.100.1"}]
    shop.api.put(fakeapi.SERVICES, service("db", PG, ADMIN, **addresses, ingress=balancer))
    shop.api.put(fakeapi.SERVICES, service("headless", {"name": "pg", "port": 15432}, clusterIP="None"))
    shop.api.put(fakeapi.SERVICES, service("empty", {"port": 80, "name": None}, clusterIP="10.96.0.6"))
    late = endpoint("10.1.0.9", "late", ready=False)
    shop.api.put(
        fakeapi.SLICES, ends("db", "a", [{"name": "pg", "port": 5432}], endpoint("10.1.0.3", "db"), late)
    )
    outside = endpoint("203.0.113.7", ready=None)
    shop.api.put(fakeapi.SLICES, ends("db", "b", [{"name": "pg", "port": 5433}], outside))
    shop.api.put(fakeapi.SLICES, ends("db", "c", [{"name": "admin", "port": 53, "protocol": "UDP"}], outside))
    shop.api.put(fakeapi.SLICES, ends("other", "d", [{"name": "pg", "port": 1}], endpoint("10.1.0.2", "web")))
    return shop


@pytest.mark.parametrize(
    ("destination", "port", "place"),
    [
        ("10.96.0.5", "15432", "10.96.0.5"),
        ("fd00:96::5", "15432/tcp", "fd00:96::5"),
        ("198.51.100.1", "15432", "198.51.100.1"),
        ("192.0.2.1", "15432", "node node1"),  # an external IP that is a node's
        ("node/node1", "30432", "node node1"),
    ],
)
def test_a_service_is_not_judged_and_its_ends_are_named(
    served: Shop, destination: str, port: str, place: str
) -> None:
    done = served.run("explain", "shop/web", destination, "--port", port)
    assert (done.exit_code, done.stdout) == (WRONG, "")
    asked = "ask for its ends: 203.0.113.7 --port 5433/tcp, shop/db --port 5432/tcp"
    assert done.stderr.strip() == f"felix-py explain: {place} leads to Service shop/db; {JUDGED} {asked}"
    assert served.run("explain", "shop/web", "shop/db", "--port", "5432/tcp").exit_code == ALLOWED


def test_a_service_without_a_port_and_one_without_ends(served: Shop) -> None:
    assert "203.0.113.7 --port 53/udp, 203.0.113.7 --port 5433/tcp" in (
        served.run("explain", "shop/web", "10.96.0.5").stderr
    )
    for port in ("80", "81"):
        done = served.run("explain", "shop/web", "10.96.0.6", "--port", port)
        assert (done.exit_code, "no end of it is ready" in done.stderr) == (WRONG, True)


@pytest.mark.parametrize(
    ("destination", "port"),
    [("node/node1", "22"), ("node/node1", "30432/udp"), ("198.51.100.1", "22"), ("10.96.0.7", "80")],
)
def test_what_no_service_takes_is_judged(served: Shop, destination: str, port: str) -> None:
    assert served.run("explain", "shop/web", destination, "--port", port).exit_code == ALLOWED


def test_services_that_cannot_be_listed(served: Shop) -> None:
    """Without the right, the note says what may be; without an answer, nothing is claimed."""
    served.api.fault("list", faults.refuse(403), path=fakeapi.SERVICES, times=9)
    done = served.run("explain", "shop/web", "10.96.0.5", "--port", "15432")
    assert (done.exit_code, "if it is a Service's, ask for its pods" in done.stdout) == (ALLOWED, True)
    served.api.clear_faults()
    served.api.fault("list", faults.refuse(500), path=fakeapi.SERVICES, times=9)
    assert served.run("explain", "shop/web", "10.96.0.5", "--port", "15432").exit_code == UNKNOWN
