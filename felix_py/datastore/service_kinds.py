"""Services and EndpointSlices as BGP needs them, and the informers that run only while it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import field

from bgp.services import Endpoints, Service
from felix_py.datastore import wire
from felix_py.datastore.client import Api
from felix_py.datastore.decode import Kind
from felix_py.datastore.followed import Followed
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.outage import Outage
from felix_py.datastore.service_wire import Conditions, ServiceSpec, ServiceStatus, addresses
from policy.change import Change

_ANNOUNCED = frozenset({"ClusterIP", "NodePort", "LoadBalancer"})
_HEADLESS = "service.kubernetes.io/headless"
"""The label that the controller of slices gives those of a headless Service. kube-proxy leaves them out, too."""

_VERSIONS = {"IPv4": 4, "IPv6": 6}

OnServices = Callable[[Sequence[Change[Service | Endpoints]]], None]
"""Receives changes in order, on the loop."""


class WireService(wire.Wire):
    """core/v1 Service."""

    metadata: wire.PolicyMetadata
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)


class _SliceLabels(wire.Wire):
    """The label that names the slice's Service."""

    service: str = field(default="", name="kubernetes.io/service-name")


class _SliceMetadata(wire.PolicyMetadata):
    """meta/v1 ObjectMeta of a slice."""

    labels: _SliceLabels | None = None


class _Endpoint(wire.Wire):
    """discovery.k8s.io/v1 Endpoint."""

    conditions: Conditions | None = None
    node_name: str | None = None


class WireSlice(wire.Wire):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: _SliceMetadata
    address_type: str = ""
    endpoints: list[_Endpoint] | None = None


def _service(service: WireService) -> Service:
    metadata, spec = service.metadata, service.spec
    if not metadata.name or not metadata.namespace:
        raise ValueError("metadata.name and metadata.namespace must not be empty")
    cluster_ips = addresses(spec.cluster_ips or [spec.cluster_ip])
    if spec.type not in _ANNOUNCED or not cluster_ips:
        return Service(metadata.namespace, metadata.name)
    ingress = service.status.load_balancer.ingress or []
    return Service(
        metadata.namespace,
        metadata.name,
        local=spec.external_traffic_policy == "Local",
        cluster_ips=cluster_ips,
        external_ips=addresses(spec.external_ips or []),
        # With "Proxy" packets come to a node port, and kube-proxy does not know the address.
        load_balancer_ips=addresses([one.ip for one in ingress if one.ip_mode != "Proxy"]),
    )


def _states(endpoint: _Endpoint) -> tuple[bool, bool]:
    """Whether an endpoint is ready, and whether it terminates and still serves (KEP-1672: null means ready, and
    serving as ready, and not terminating)."""
    said = endpoint.conditions or Conditions()
    ready = said.ready is not False
    serving = ready if said.serving is None else said.serving
    return ready, serving and bool(said.terminating)


def _slice(node: str) -> Callable[[WireSlice], Endpoints]:
    def convert(found: WireSlice) -> Endpoints:
        metadata = found.metadata
        if not metadata.name or not metadata.namespace:
            raise ValueError("metadata.name and metadata.namespace must not be empty")
        seen = {(one.node_name == node, _states(one)) for one in found.endpoints or ()}
        return Endpoints(
            metadata.namespace,
            metadata.name,
            metadata.labels.service if metadata.labels else "",
            _VERSIONS.get(found.address_type, 0),
            ready_here=any(here and ready for here, (ready, _) in seen),
            ready_elsewhere=any(not here and ready for here, (ready, _) in seen),
            terminating_here=any(here and ends and not ready for here, (ready, ends) in seen),
            terminating_elsewhere=any(not here and ends and not ready for here, (ready, ends) in seen),
        )

    return convert


SERVICES = Kind(
    "Service",
    "v1",
    "/api/v1/services",
    key=lambda service: service.key,
    wire_type=WireService,
    convert=_service,
)


def endpoint_slices(node: str) -> Kind[Endpoints]:
    """EndpointSlices as one node needs them; without those of headless Services."""
    return Kind(
        "EndpointSlice",
        "discovery.k8s.io/v1",
        "/apis/discovery.k8s.io/v1/endpointslices",
        key=lambda endpoints: endpoints.key,
        wire_type=WireSlice,
        convert=_slice(node),
        query={"labelSelector": f"!{_HEADLESS}"},
    )


class ServiceObjects(Followed):
    """All Services and EndpointSlices, each kind from when it is first asked for. On the event loop only.

    What was asked for once is watched until the agent ends: a range that comes and goes must not cost a list each
    time. The API server's word stays in force while it is away, as with all other kinds.
    """

    def __init__(
        self,
        api: Api,
        timing: Timing,
        node: str,
        watched: list[Reflector[Any]],
        outage: Outage | None = None,
    ) -> None:
        """See :class:`Followed`."""
        kinds = (SERVICES, endpoint_slices(node))
        super().__init__(api, timing, watched, kinds, outage=outage, component="services")

    def want(self, *, endpoints: bool) -> None:
        """Watch Services, and EndpointSlices if ``endpoints``."""
        for kind in self.start(*(("Service", "EndpointSlice") if endpoints else ("Service",))):
            self._log.info("watching, since BGP announces Services", kind=kind)
