"""Services with all that the choice of load balancer addresses needs, and the write of their status."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import quote

import msgspec
from msgspec import Raw, field

from felix_py.datastore import wire
from felix_py.datastore.client import Api
from felix_py.datastore.decode import Kind
from felix_py.layout import FOREIGN_LOAD_BALANCER_IPS, LOAD_BALANCER_IPS
from felix_py.records import Ingress, LoadBalancer
from policy.syntax import canonical_address

_MERGE_PATCH = "application/merge-patch+json"


class _Metadata(wire.PolicyMetadata):
    annotations: dict[str, str] | None = None
    creation_timestamp: str | None = None


class _Spec(wire.Wire):
    """core/v1 ServiceSpec."""

    type: str = "ClusterIP"
    cluster_ip: str = field(default="", name="clusterIP")
    cluster_ips: list[str] | None = field(default=None, name="clusterIPs")
    external_ips: list[str] | None = field(default=None, name="externalIPs")
    ip_families: list[str] | None = None
    load_balancer_ip: str = field(default="", name="loadBalancerIP")
    load_balancer_class: str | None = None


class _Balancer(wire.Wire):
    """core/v1 LoadBalancerStatus."""

    ingress: list[Raw] | None = None


class _Status(wire.Wire):
    """core/v1 ServiceStatus."""

    load_balancer: _Balancer = field(default_factory=_Balancer)


class WireLoadBalancer(wire.Wire):
    """core/v1 Service."""

    metadata: _Metadata
    spec: _Spec = field(default_factory=_Spec)
    status: _Status = field(default_factory=_Status)


class _Address(wire.Wire):
    """core/v1 LoadBalancerIngress."""

    ip: str = ""


def _convert(found: WireLoadBalancer) -> LoadBalancer:
    metadata, spec = found.metadata, found.spec
    if not metadata.name or not metadata.namespace:
        raise ValueError("metadata.name and metadata.namespace must not be empty")
    cluster_ips = _addresses(spec.cluster_ips or [spec.cluster_ip])
    families = tuple({"IPv4": 4, "IPv6": 6}[one] for one in spec.ip_families or () if one in ("IPv4", "IPv6"))
    annotations = metadata.annotations or {}
    asking = (LOAD_BALANCER_IPS, *FOREIGN_LOAD_BALANCER_IPS)
    return LoadBalancer(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        resource_version=metadata.resource_version,
        created=metadata.creation_timestamp or "",
        wanted=spec.type == "LoadBalancer",
        load_balancer_class=spec.load_balancer_class or "",
        # A Service from before dual stack says it by its address alone.
        families=families or tuple(6 if ":" in address else 4 for address in cluster_ips),
        asked=spec.load_balancer_ip,
        annotations=tuple((name, annotations[name]) for name in asking if name in annotations),
        ingress=tuple(_ingress(bytes(one)) for one in found.status.load_balancer.ingress or ()),
        other_addresses=(*cluster_ips, *_addresses(spec.external_ips or ())),
    )


def _ingress(raw: bytes) -> Ingress:
    addresses = _addresses([msgspec.json.decode(raw, type=_Address).ip])
    return Ingress(addresses[0] if addresses else "", raw)


def _addresses(texts: Sequence[str]) -> tuple[str, ...]:
    """Canonical texts, without what is no address (``None`` of a headless Service)."""
    found: list[str] = []
    for text in texts:
        with suppress(ValueError):
            found.append(canonical_address(text))
    return tuple(found)


LOAD_BALANCERS: Kind[LoadBalancer] = Kind(
    "Service",
    "v1",
    "/api/v1/services",
    key=lambda found: found.key,
    wire_type=WireLoadBalancer,
    convert=_convert,
)


def write_ingress(api: Api, service: LoadBalancer, entries: Sequence[bytes], patience: float) -> None:
    """Set ``status.loadBalancer.ingress`` of a Service that is still as it was read. ``patience``: seconds.

    Raises:
        ApiError: refused; 409: it has changed; 404: it is gone.
        Unreachable: no answer: it may be written or not.
    """
    body = {
        "metadata": {"resourceVersion": service.resource_version, "uid": service.uid},
        "status": {"loadBalancer": {"ingress": [Raw(entry) for entry in entries]}},
    }
    path = (
        f"/api/v1/namespaces/{quote(service.namespace, safe='')}/services/{quote(service.name, safe='')}/status"
    )
    raw = msgspec.json.encode(body)
    with api.request("PATCH", path, body=raw, content_type=_MERGE_PATCH, read_timeout=patience) as answer:
        answer.read()
