"""The kinds of objects that the agent watches: how each is decoded, and what of it is kept."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import msgspec

from bgp.node import KEYS
from felix_py.datastore import wire
from felix_py.datastore.decode import LONGEST_REASON, Kind, Salvage
from felix_py.datastore.wire import UNDECODABLE
from felix_py.ipam.names import NODE_LABEL, node_label
from felix_py.ipam.parse import Origin, parse_affinity, parse_block
from felix_py.ipam.resources import BlockAffinity, IPAMBlock
from felix_py.layout import DRAIN
from felix_py.records import ConfigurationRecord, NodeRecord, SecretRecord
from policy.model import (
    ClusterPolicy,
    Labels,
    NamedPort,
    Namespace,
    NetworkPolicy,
    Pod,
    PolicyKind,
    Protocol,
)
from policy.parse import Rejected, parse_network_policy
from policy.parse_cluster import parse_admin_policy, parse_baseline_admin_policy, parse_cluster_policy
from policy.syntax import canonical_address, canonical_cidr

P = TypeVar("P", NetworkPolicy, ClusterPolicy)
R = TypeVar("R")

_TERMINATED = frozenset({"Succeeded", "Failed"})
_MOST_ANNOUNCED = 32
"""Addresses in an annotation that are looked at."""

_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}


def _keys(annotations: type[wire.Wire]) -> tuple[tuple[str, str], ...]:
    """(field, annotation) of each."""
    return tuple((one.name, one.encode_name) for one in msgspec.structs.fields(annotations))


_OF_NAMESPACES, _OF_PODS = _keys(wire.PoolAnnotations), _keys(wire.AddressAnnotations)

# --- sharing ---------------------------------------------------------------------------------------------------
# Equal values are stored once: 100,000 pods have a few thousand label sets and a few hundred namespaces. The LRU
# cache is bounded, because every Job brings label values that are never used again.


@lru_cache(maxsize=1 << 15)
def _shared(value: Any) -> Any:
    """The copy of an equal value seen before. Strings and tuples of strings only: 1 == True would collide."""
    return value


def _labels(labels: dict[str, str] | None) -> Labels:
    if not labels:
        return ()
    return _shared(tuple(sorted(labels.items())))  # type: ignore[no-any-return]


def _address(text: str) -> str:
    """The canonical text of an address; ValueError if it is not one."""
    try:
        # inet_pton(3) accepts canonical IPv4 only, and is ten times faster than ipaddress.
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return canonical_address(text)
    return text


# --- kinds -----------------------------------------------------------------------------------------------------


def _pod(pod: wire.WirePod, here: str = "") -> Pod:
    """``here``: the node whose pods keep their annotations; empty: none do."""
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    if not metadata.name or not metadata.namespace:
        raise ValueError("metadata.name and metadata.namespace must not be empty")
    texts = [ip.ip for ip in status.pod_ips or ()] or [status.pod_ip]
    addresses = tuple([_address(text) for text in texts if text])
    return Pod(
        namespace=_shared(metadata.namespace),
        name=metadata.name,
        uid=_uid(metadata),
        node=_shared(spec.node_name),
        labels=_labels(metadata.labels),
        addresses=addresses,
        ports=_ports(spec),
        host_network=spec.host_network,
        active=status.phase not in _TERMINATED and not (metadata.deletion_timestamp and _have_ended(status)),
        since=max(metadata.creation_timestamp or "", status.start_time or ""),
        deleted=bool(metadata.deletion_timestamp),
        announced=_announced(metadata, addresses),
        annotations=_asked(metadata.annotations, _OF_PODS) if here and spec.node_name == here else (),
    )


def _announced(metadata: wire.PodMetadata, listed: tuple[str, ...]) -> tuple[str, ...]:
    """The addresses of the annotation that the status does not list; what has too many, or a word that is no
    address, is as if it were not there."""
    words = metadata.annotations.announced.split(",") if metadata.annotations else []
    if len(words) > _MOST_ANNOUNCED:
        return ()
    try:
        return tuple(dict.fromkeys(a for a in (_address(word) for word in words if word) if a not in listed))
    except ValueError:
        return ()


def _asked(found: wire.PoolAnnotations | None, fields: Sequence[tuple[str, str]]) -> Labels:
    """The annotations on addresses that there are."""
    if found is None:
        return ()
    given = [(key, getattr(found, name)) for name, key in fields if getattr(found, name)]
    return _shared(tuple(sorted(given))) if given else ()


def _have_ended(status: wire.PodStatus) -> bool:
    """Whether all containers have terminated. Those of a deleted pod do not restart, so its sandbox goes too."""
    lists = (status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses)
    ended = all(c.state and c.state.terminated is not None for containers in lists for c in containers or ())
    return bool(status.container_statuses) and ended


def _uid(metadata: wire.PodMetadata) -> str:
    """The uid by which kubelet and runtime know the pod.

    The API object of a static pod is its mirror pod. The kubelet gives the pod itself another uid (a hash of its
    manifest, unless that names one), starts the sandbox under it, and records it in these annotations
    (pkg/kubelet/config/common.go, pkg/kubelet/pod/mirror_client.go). ``config.mirror`` is immutable.
    """
    annotations = metadata.annotations
    return (annotations and (annotations.mirror or annotations.hash)) or metadata.uid


def _ports(spec: wire.PodSpec) -> tuple[NamedPort, ...]:
    """Named ports of containers and of sidecars (init containers with ``restartPolicy: Always``)."""
    containers = list(spec.containers or ())
    containers += [c for c in spec.init_containers or () if c.restart_policy == "Always"]
    ports = [
        NamedPort(port.name, _PROTOCOLS[port.protocol], port.container_port)
        for container in containers
        for port in container.ports or ()
        # A named port never resolves to a protocol that NetworkPolicy cannot name.
        if port.name and port.protocol in _PROTOCOLS
    ]
    return _shared(tuple(ports)) if ports else ()


def _namespace(namespace: wire.WireNamespace) -> Namespace:
    metadata = namespace.metadata
    if not metadata.name:
        raise ValueError("metadata.name must not be empty")
    asked = _asked(metadata.annotations, _OF_NAMESPACES)
    return Namespace(metadata.name, _labels(metadata.labels), asked)


def _parsed(policy: wire.WirePolicy, parse: Callable[[object], P]) -> P:
    """Parse a policy. An undecodable spec fails closed, as one of which no part is understood."""
    metadata = policy.metadata
    named = {"namespace": metadata.namespace, "name": metadata.name, "uid": metadata.uid}
    try:
        spec = msgspec.json.decode(policy.spec) if policy.spec else None
        return parse({"metadata": named, "spec": spec})
    except Rejected as error:
        raise ValueError(str(error)) from error
    except UNDECODABLE as error:
        unreadable = (f"spec: cannot be read: {str(error)[:LONGEST_REASON]}",)
    try:
        closed = parse({"metadata": named, "spec": "unreadable"})
    except Rejected as error:
        raise ValueError(str(error)) from error
    return replace(closed, problems=unreadable + closed.problems)


def _salvaged(parse: Callable[[object], P]) -> Salvage[P]:
    """For a policy whose parts beside the spec are undecodable: its spec is in force all the same."""

    def salvaged(meta: wire.Name, parts: dict[str, bytes], reason: str) -> P:
        metadata = wire.PolicyMetadata(meta.name, meta.namespace, meta.uid)
        understood: P = _parsed(wire.WirePolicy(metadata, msgspec.Raw(parts.get("spec", b""))), parse)
        return replace(understood, problems=(f"cannot be read wholly: {reason}", *understood.problems))

    return salvaged


def _own_spec(found: wire.WireOwn) -> dict[str, Any]:
    """The spec of an object of ours; ValueError if it is none."""
    if not found.metadata.name:
        raise ValueError("metadata.name must not be empty")
    try:
        spec = msgspec.json.decode(found.spec) if found.spec else {}
    except UNDECODABLE as error:
        raise ValueError(f"spec: {error}"[:LONGEST_REASON]) from error
    if spec is not None and not isinstance(spec, dict):
        raise ValueError("spec: must be an object")
    return spec or {}


def _configuration(found: wire.WireOwn) -> ConfigurationRecord:
    """The object with its spec. One that cannot be decoded is a problem of the record, which keeps its name."""
    metadata = found.metadata
    created = metadata.creation_timestamp or ""
    try:
        return ConfigurationRecord(metadata.name, metadata.uid, _own_spec(found), created=created)
    except ValueError as error:
        if not metadata.name:
            raise
        return ConfigurationRecord(metadata.name, metadata.uid, problem=str(error), created=created)


def _salvaged_configuration(meta: wire.Name, parts: dict[str, bytes], _reason: str) -> ConfigurationRecord:
    metadata = wire.OwnMetadata(meta.name, meta.namespace, meta.uid)
    return _configuration(wire.WireOwn(metadata, msgspec.Raw(parts.get("spec", b""))))


def _ipam(parse: Callable[[str, object, Origin], R]) -> Callable[[wire.WireOwn], R]:
    """One of the objects that agents write; ValueError where somebody else has spoilt it."""

    def convert(found: wire.WireOwn) -> R:
        metadata = found.metadata
        return parse(metadata.name, _own_spec(found), Origin(metadata.uid, metadata.resource_version))

    return convert


def _node(node: wire.WireNode) -> NodeRecord:
    metadata, spec = node.metadata, node.spec
    if not metadata.name:
        raise ValueError("metadata.name must not be empty")
    cidrs = spec.pod_cidrs or [spec.pod_cidr]
    internal = _node_addresses(node.status.addresses or (), "InternalIP")
    external = _node_addresses(node.status.addresses or (), "ExternalIP")
    annotations = metadata.annotations or {}
    return NodeRecord(
        name=metadata.name,
        uid=metadata.uid,
        addresses=tuple(dict.fromkeys((*internal, *external))),
        internal_addresses=internal,
        pod_cidrs=tuple([canonical_cidr(cidr) for cidr in cidrs if cidr]),
        labels=_labels(metadata.labels),
        unschedulable=spec.unschedulable,
        drain=_drain(annotations, spec),
        annotations=_labels({key: value for key, value in annotations.items() if key in KEYS}),
    )


def _drain(annotations: Mapping[str, str], spec: wire.NodeSpec) -> str:
    """Why BGP is to lead traffic away from the node: what its annotation says, or that it has the taint."""
    asked = annotations.get(DRAIN, "")
    if asked and asked != "false":
        return asked
    return "taint" if any(taint.key == DRAIN for taint in spec.taints or ()) else ""


def _secret(found: wire.WireSecret) -> SecretRecord:
    metadata = found.metadata
    if not metadata.name:
        raise ValueError("metadata.name must not be empty")
    data = {key: _secret_value(value) for key, value in (found.data or {}).items()}
    return SecretRecord(metadata.name, metadata.uid, data)


def _secret_value(encoded: str) -> str:
    try:
        return base64.b64decode(encoded).decode().rstrip("\r\n")
    except ValueError:
        return ""


def _node_addresses(addresses: Sequence[wire.NodeAddress], kind: str) -> tuple[str, ...]:
    """Addresses of one type. Texts that are no address, which the API does not reject, are left out."""
    found: dict[str, None] = {}
    for address in addresses:
        if address.type == kind:
            with suppress(ValueError):
                found[_address(address.address)] = None
    return tuple(found)


def pods(here: str = "") -> Kind[Pod]:
    """All pods; those of the node ``here`` with their annotations."""
    convert = partial(_pod, here=here)
    return Kind("Pod", "v1", "/api/v1/pods", key=lambda pod: pod.key, wire_type=wire.WirePod, convert=convert)


PODS = pods()
NAMESPACES = Kind(
    "Namespace",
    "v1",
    "/api/v1/namespaces",
    key=lambda namespace: ("", namespace.name),
    wire_type=wire.WireNamespace,
    convert=_namespace,
)
POLICIES = Kind(
    "NetworkPolicy",
    "networking.k8s.io/v1",
    "/apis/networking.k8s.io/v1/networkpolicies",
    key=lambda policy: policy.key,
    wire_type=wire.WirePolicy,
    convert=lambda policy: _parsed(policy, parse_network_policy),
    salvage=_salvaged(parse_network_policy),
)


def _cluster_kind(
    kind: PolicyKind, version: str, plural: str, parse: Callable[[object], ClusterPolicy]
) -> Kind[ClusterPolicy]:
    api_version = f"policy.networking.k8s.io/{version}"
    return Kind(
        kind.value,
        api_version,
        f"/apis/{api_version}/{plural}",
        key=lambda policy: policy.key,
        wire_type=wire.WirePolicy,
        convert=lambda policy: _parsed(policy, parse),
        salvage=_salvaged(parse),
        optional=True,
    )


CLUSTER_POLICIES = _cluster_kind(PolicyKind.CLUSTER, "v1alpha2", "clusternetworkpolicies", parse_cluster_policy)
ADMIN_POLICIES = _cluster_kind(PolicyKind.ADMIN, "v1alpha1", "adminnetworkpolicies", parse_admin_policy)
BASELINE_ADMIN_POLICIES = _cluster_kind(
    PolicyKind.BASELINE_ADMIN, "v1alpha1", "baselineadminnetworkpolicies", parse_baseline_admin_policy
)
CLUSTER_POLICY_KINDS = (CLUSTER_POLICIES, ADMIN_POLICIES, BASELINE_ADMIN_POLICIES)
"""The cluster-scoped policy kinds, served only while their CustomResourceDefinitions are installed."""

NODES = Kind(
    "Node", "v1", "/api/v1/nodes", key=lambda node: ("", node.name), wire_type=wire.WireNode, convert=_node
)


_OWN_VERSION = "felixpy.io/v1alpha1"


def _own_kind(name: str, plural: str) -> Kind[ConfigurationRecord]:
    return Kind(
        name,
        _OWN_VERSION,
        f"/apis/{_OWN_VERSION}/{plural}",
        key=lambda found: ("", found.name),
        wire_type=wire.WireOwn,
        convert=_configuration,
        salvage=_salvaged_configuration,
        optional=True,
    )


CONFIGURATIONS = _own_kind("FelixConfiguration", "felixconfigurations")
BGP_CONFIGURATIONS = _own_kind("BGPConfiguration", "bgpconfigurations")
BGP_PEERS = _own_kind("BGPPeer", "bgppeers")
BGP_FILTERS = _own_kind("BGPFilter", "bgpfilters")
BGP_KINDS = (BGP_CONFIGURATIONS, BGP_PEERS, BGP_FILTERS)
IP_POOLS = _own_kind("IPPool", "ippools")
IP_RESERVATIONS = _own_kind("IPReservation", "ipreservations")
POOL_KINDS = (IP_POOLS, IP_RESERVATIONS)
OWN_KINDS = (CONFIGURATIONS, *BGP_KINDS, *POOL_KINDS)
"""Our own custom resources. Nothing waits for them, and policy does not see them: who uses one waits for its
table to change (:meth:`felix_py.datastore.store.Store.own`)."""


IPAM_BLOCKS: Kind[IPAMBlock] = Kind(
    "IPAMBlock",
    _OWN_VERSION,
    f"/apis/{_OWN_VERSION}/ipamblocks",
    key=lambda found: ("", found.name),
    wire_type=wire.WireOwn,
    convert=_ipam(parse_block),
    optional=True,
)


def block_affinities(node: str = "") -> Kind[BlockAffinity]:
    """BlockAffinities of one node, or of all."""
    return Kind(
        "BlockAffinity",
        _OWN_VERSION,
        f"/apis/{_OWN_VERSION}/blockaffinities",
        key=lambda found: ("", found.name),
        wire_type=wire.WireOwn,
        convert=_ipam(parse_affinity),
        optional=True,
        query={"labelSelector": f"{NODE_LABEL}={node_label(node)}"} if node else None,
    )


def secret_kind(namespace: str, name: str) -> Kind[SecretRecord]:
    """One Secret: to follow it takes no right to others."""
    return Kind(
        "Secret",
        "v1",
        f"/api/v1/namespaces/{namespace}/secrets",
        key=lambda found: (namespace, found.name),
        wire_type=wire.WireSecret,
        convert=_secret,
        query={"fieldSelector": f"metadata.name={name}"},
    )
