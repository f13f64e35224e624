"""JSON types of Services and EndpointSlices that both BGP and ``felix-py explain`` read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from msgspec import field

from felix_py.datastore import wire
from policy.syntax import canonical_address


class ServiceSpec(wire.Wire):
    """core/v1 ServiceSpec."""

    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    external_traffic_policy: str = ""


class Ingress(wire.Wire):
    """core/v1 LoadBalancerIngress."""

    ip: str = ""
    ip_mode: str | None = None


class LoadBalancer(wire.Wire):
    """core/v1 LoadBalancerStatus."""

    ingress: list[Ingress] | None = None


class ServiceStatus(wire.Wire):
    """core/v1 ServiceStatus."""

    load_balancer: LoadBalancer = field(default_factory=LoadBalancer)


class Conditions(wire.Wire):
    """discovery.k8s.io/v1 EndpointConditions; null: see KEP-1672."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


def addresses(texts: Iterable[str]) -> tuple[str, ...]:
    """Canonical texts. ``None`` (headless) and what is no address, which nobody could announce, is left out."""
    found: dict[str, None] = {}
    for text in texts:
        with suppress(ValueError):
            found[canonical_address(text)] = None
    return tuple(found)
