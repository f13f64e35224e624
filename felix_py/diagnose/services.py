"""Service addresses and ports, which kube-proxy translates before policy is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from msgspec import field

from felix_py.datastore import wire
from felix_py.datastore.client import Api
from felix_py.datastore.decode import Kind
from felix_py.datastore.fetch import listed
from felix_py.datastore.service_wire import Conditions, ServiceSpec, ServiceStatus, addresses
from felix_py.diagnose.ends import Place
from policy.model import ObjectKey

_MOST_NAMED = 3


class _Port(wire.Wire):
    """core/v1 ServicePort, discovery.k8s.io/v1 EndpointPort."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None
    node_port: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Name and protocol, by which a Service's port and its slices' belong together."""
        return self.name or "", self.protocol or "TCP"


class _Spec(ServiceSpec):
    ports: list[_Port] | None = None


class _Service(wire.Wire):
    """core/v1 Service."""

    metadata: wire.PolicyMetadata
    spec: _Spec = field(default_factory=_Spec)
    status: ServiceStatus = field(default_factory=ServiceStatus)

    def takes(self, place: Place, number: int | None, protocol: str) -> list[_Port]:
        """Its ports that take packets to a place; ``number``: the port that is asked for, None: any."""

        def wanted(port: _Port, own: int | None) -> bool:
            return number is None or (own == number and port.key[1] == protocol)

        own = set(place.addresses.values())
        ports = self.spec.ports or []
        inside = self.spec.cluster_ips or [self.spec.cluster_ip]
        if own.intersection(addresses(inside)):
            return [port for port in ports if wanted(port, port.port)] or ports
        outside = [*(self.spec.external_ips or ()), *(one.ip for one in self.status.load_balancer.ingress or ())]
        given = [port for port in ports if own.intersection(addresses(outside)) and wanted(port, port.port)]
        return given or [port for port in ports if place.node and number and wanted(port, port.node_port)]


class _Target(wire.Wire):
    """core/v1 ObjectReference."""

    kind: str = ""
    namespace: str = ""
    name: str = ""


class _Endpoint(wire.Wire):
    """discovery.k8s.io/v1 Endpoint."""

    addresses: list[str] | None = None
    target_ref: _Target | None = None
    conditions: Conditions | None = None


class _Slice(wire.Wire):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: wire.PolicyMetadata
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


def _kind(name: str, version: str, path: str, of: type[_Service] | type[_Slice], **query: str) -> Kind[Any]:
    def key(found: _Service | _Slice) -> ObjectKey:
        return found.metadata.namespace, found.metadata.name

    return Kind(name, version, path, key=key, wire_type=of, convert=lambda found: found, query=query)


def translated(api: Api, place: Place, port: str) -> str:
    """Why packets to a place go elsewhere, and where; empty: they do not, or Services may not be listed.

    ``port``: as ``--port``. Raises ApiError, Unreachable.
    """
    text, _, protocol = port.partition("/")
    number = int(text) if text.isdigit() else None
    for service in listed(api, _kind("Service", "v1", "/api/v1/services", _Service)):
        if ports := service.takes(place, number, protocol.upper() or "TCP"):
            return _told(api, place, service, ports)
    return ""


def _told(api: Api, place: Place, service: _Service, ports: list[_Port]) -> str:
    namespace, name = service.metadata.namespace, service.metadata.name
    path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(namespace)}/endpointslices"
    query = {"labelSelector": f"kubernetes.io/service-name={name}"}
    slices = listed(api, _kind("EndpointSlice", "discovery.k8s.io/v1", path, _Slice, **query))
    ends = sorted({end for one in slices for end in _ends(one, {port.key for port in ports})})
    more = f" and {len(ends) - _MOST_NAMED} more" if len(ends) > _MOST_NAMED else ""
    ask = f"ask for its ends: {', '.join(ends[:_MOST_NAMED])}{more}" if ends else "no end of it is ready"
    leads = f"{place.name} leads to Service {namespace}/{name}"
    return f"{leads}; policy judges packets where kube-proxy sends them: {ask}"


def _ends(found: _Slice, wanted: set[tuple[str, str]]) -> Iterator[str]:
    """Ready endpoints as words for ``felix-py explain``."""
    for port in found.ports or ():
        if port.key not in wanted:
            continue
        which = f" --port {port.port}/{port.key[1].lower()}" if port.port else ""
        for endpoint in found.endpoints or ():
            if endpoint.conditions is not None and endpoint.conditions.ready is False:
                continue
            target = endpoint.target_ref
            pod = f"{target.namespace}/{target.name}" if target and target.kind == "Pod" else ""
            for end in [pod] if pod else endpoint.addresses or ():
                yield f"{end}{which}"
