"""From the API's bytes to the records that the rest of the agent reasons with.

An object that cannot be understood becomes :class:`Unusable`; it never breaks the list or the watch it came with.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec

from felix_py.datastore import salvage, wire
from felix_py.datastore.client import error_from_status
from felix_py.datastore.wire import UNDECODABLE
from felix_py.records import NodeRecord
from policy.model import (
    ClusterPolicy,
    Labels,
    NamedPort,
    Namespace,
    NetworkPolicy,
    ObjectKey,
    Pod,
    PolicyKind,
    Protocol,
)
from policy.parse import Rejected, parse_network_policy
from policy.parse_cluster import parse_admin_policy, parse_baseline_admin_policy, parse_cluster_policy
from policy.syntax import canonical_address, canonical_cidr

R = TypeVar("R")
W = TypeVar("W")
P = TypeVar("P", NetworkPolicy, ClusterPolicy)

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
"""Annotation of the bookmark that ends the first part of a WatchList (KEP-3157)."""

_LONGEST_REASON = 500
"""Characters of a reason: it may quote what it is about."""

_TERMINATED = frozenset({"Succeeded", "Failed"})
_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}


@dataclass(frozen=True, slots=True)
class Gone:
    """The object of this key was deleted."""

    key: ObjectKey


@dataclass(frozen=True, slots=True)
class Unusable:
    """An object that exists but cannot be understood. Without a readable name its key is ("", "")."""

    key: ObjectKey
    uid: str
    reason: str


class Unreadable(Exception):
    """Bytes of the API server that are no list and no event, or an event of an object without a name."""


@dataclass(slots=True)
class Listing(Generic[R]):
    """One page of a list. ``continue_token`` empty: the last one."""

    found: list[R | Unusable]
    resource_version: str
    continue_token: str


@dataclass(slots=True)
class WatchEvent(Generic[R]):
    """One line of a watch. ``what`` None: a bookmark. ``initial_end``: the one that ends a WatchList's list."""

    what: R | Gone | Unusable | None
    resource_version: str
    initial_end: bool = False


Salvage = Callable[[wire.Name, "dict[str, bytes]", str], R]
"""Makes a record of an object that cannot be decoded as a whole: of its name, its members' bytes, and why it
cannot."""


class Kind(Generic[R]):
    """One kind of object to watch, and how it becomes a record.

    Each list and each line is first decoded as if every object in it were well-formed; only where that fails is
    it decoded again, object by object, and what the decoder cannot pass over is cut out (:mod:`salvage`).
    """

    def __init__(
        self,
        name: str,
        api_version: str,
        path: str,
        *,
        key: Callable[[R], ObjectKey],
        wire_type: type[W],
        convert: Callable[[W], R],
        salvage: Salvage[R] | None = None,
        optional: bool = False,
    ) -> None:
        """``convert`` raises ValueError with the reason why an object cannot be used; so does ``salvage``, for
        kinds of which an object must not be left out because a part of it is beyond reading.

        ``optional``: a custom resource, which a server has only while its CustomResourceDefinition is installed.
        """
        self.name = name
        self.api_version = api_version
        self.path = path
        self.key = key
        self.optional = optional
        self._convert: Callable[[Any], R] = convert
        self._salvage = salvage
        self._object = msgspec.json.Decoder(wire_type)
        list_type: Any = wire.ObjectList
        line_type: Any = wire.WatchLine
        self._list: msgspec.json.Decoder[wire.ObjectList[Any]] = msgspec.json.Decoder(list_type[wire_type])
        self._line: msgspec.json.Decoder[wire.WatchLine[Any]] = msgspec.json.Decoder(line_type[wire_type])

    def listing(self, body: bytes) -> Listing[R]:
        """Decode one page of a list.

        Raises:
            Unreadable: it is not a list.
        """
        try:
            page = self._list.decode(body)
            found = [self._record(item) for item in page.items or ()]
            return Listing(found, page.metadata.resource_version, page.metadata.continue_)
        except UNDECODABLE:
            metadata, items = raw_list(body)
            found = [self._careful_record(item) for item in items]
            return Listing(found, metadata.resource_version, metadata.continue_)

    def single(self, body: bytes | msgspec.Raw) -> R | Unusable:
        """Decode one object."""
        return self._careful_record(body)

    def change(self, line: bytes) -> WatchEvent[R]:
        """Decode one line of a watch.

        Raises:
            ApiError: the server ended the watch with an ERROR event.
            Unreadable: it is not an event, or its object has no name.
        """
        try:
            event = self._line.decode(line)
        except UNDECODABLE:
            return self._careful_change(line)
        if event.type not in _PRESENT or not event.object.metadata.name:
            return self._careful_change(line)
        return WatchEvent(self._record(event.object), event.object.metadata.resource_version)

    def _careful_change(self, line: bytes) -> WatchEvent[R]:
        what, obj = _raw_event(line)
        match what:
            case "ADDED" | "MODIFIED":
                return WatchEvent(self._careful_record(obj), _name(obj).resource_version)
            case "DELETED":
                meta = _name(obj)
                if not meta.name:
                    raise Unreadable("an object without a readable name was deleted")
                return WatchEvent(Gone((meta.namespace, meta.name)), meta.resource_version)
            case "BOOKMARK":
                try:
                    mark = _BOOKMARK.decode(obj).metadata
                except UNDECODABLE as error:
                    raise Unreadable(f"not a bookmark: {error}") from error
                end = (mark.annotations or {}).get(INITIAL_EVENTS_END) == "true"
                return WatchEvent(None, mark.resource_version, end)
            case "ERROR":
                raise error_from_status(_status(obj), 500)
        raise Unreadable(f"unknown event type {what[:100]!r}")

    def _record(self, decoded: Any) -> R | Unusable:
        try:
            return self._convert(decoded)
        except ValueError as error:
            reason = str(error)
        except MemoryError:  # says nothing of the object
            raise
        except Exception as error:
            # A defect of ours in one object's conversion must not keep all others from being known.
            reason = f"{type(error).__name__}: {error}"
        return _unusable(decoded.metadata, reason)

    def _careful_record(self, raw: bytes | msgspec.Raw) -> R | Unusable:
        try:
            return self._record(self._object.decode(raw))
        except UNDECODABLE as error:
            reason = str(error)
        meta = _name(raw)
        if self._salvage is None:
            return _unusable(meta, reason)
        try:
            return self._salvage(meta, salvage.members(bytes(raw)), reason[:_LONGEST_REASON])
        except (ValueError, RecursionError) as error:
            return _unusable(meta, f"{reason}; {error}")


def raw_list(body: bytes) -> tuple[wire.ListMeta, list[bytes | msgspec.Raw]]:
    """A page of a list: what it says of itself, and each object's bytes.

    Raises:
        Unreadable: it is not a list.
    """
    try:
        page = _LIST.decode(body)
        return page.metadata, [*(page.items or ())]
    except UNDECODABLE as error:
        reason = error
    try:
        parts = salvage.members(body)
        items = parts.get("items", b"null")
        return _LIST_META.decode(parts["metadata"]), [*salvage.elements(items)] if items != b"null" else []
    except (KeyError, *UNDECODABLE):
        raise Unreadable(f"not a list: {reason}") from reason


def _raw_event(line: bytes) -> tuple[str, bytes | msgspec.Raw]:
    try:
        event = _LINE.decode(line)
        return event.type, event.object
    except UNDECODABLE as error:
        reason = error
    try:
        parts = salvage.members(line)
        return salvage.text(parts["type"]), parts["object"]
    except (KeyError, ValueError):
        raise Unreadable(f"not a watch event: {reason}") from reason


def _name(raw: bytes | msgspec.Raw) -> wire.Name:
    """Whatever can be read of an object's name; all empty where that is nothing."""
    try:
        return _NAMED.decode(raw).metadata
    except UNDECODABLE:
        pass
    try:
        parts = salvage.members(salvage.members(bytes(raw))["metadata"])
    except (KeyError, ValueError):
        return wire.Name("")
    name, namespace, uid, version = (
        salvage.text(parts.get(field, b"")) for field in ("name", "namespace", "uid", "resourceVersion")
    )
    return wire.Name(name, namespace, uid, version)


def _status(raw: bytes | msgspec.Raw) -> wire.Status:
    try:
        return _STATUS.decode(raw)
    except UNDECODABLE:
        return wire.Status(message="an error that cannot be read")


def _unusable(meta: Any, reason: str) -> Unusable:
    key = (meta.namespace, meta.name) if meta.name else ("", "")
    return Unusable(key, meta.uid, reason[:_LONGEST_REASON])


_PRESENT = frozenset({"ADDED", "MODIFIED"})
_LIST = msgspec.json.Decoder(wire.ObjectList[msgspec.Raw])
_LIST_META = msgspec.json.Decoder(wire.ListMeta)
_LINE = msgspec.json.Decoder(wire.WatchLine[msgspec.Raw])
_NAMED = msgspec.json.Decoder(wire.Named)
_BOOKMARK = msgspec.json.Decoder(wire.Bookmark)
_STATUS = msgspec.json.Decoder(wire.Status)


# --- sharing ---------------------------------------------------------------------------------------------------
# Equal values are kept once: 100,000 pods have a few thousand label sets and a few hundred namespaces. The table
# is bounded (the coldest entries go first), because every Job brings label values that nobody uses again.


@lru_cache(maxsize=1 << 15)
def _shared(value: Any) -> Any:
    """The one copy of an equal value seen before. Strings and tuples of strings only: 1 == True would mix up."""
    return value


def _labels(labels: dict[str, str] | None) -> Labels:
    if not labels:
        return ()
    return _shared(tuple(sorted(labels.items())))  # type: ignore[no-any-return]


def _address(text: str) -> str:
    """The canonical text of an address.

    Raises:
        ValueError: it is none.
    """
    try:
        # What inet_pton(3) takes as IPv4 is canonical already; this is ten times faster than ipaddress.
        socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return canonical_address(text)
    return text


# --- kinds -----------------------------------------------------------------------------------------------------


def _pod(pod: wire.WirePod) -> Pod:
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    if not metadata.name or not metadata.namespace:
        raise ValueError("metadata.name and metadata.namespace must not be empty")
    texts = [ip.ip for ip in status.pod_ips or ()] or [status.pod_ip]
    return Pod(
        namespace=_shared(metadata.namespace),
        name=metadata.name,
        uid=_uid(metadata),
        node=_shared(spec.node_name),
        labels=_labels(metadata.labels),
        addresses=tuple([_address(text) for text in texts if text]),
        ports=_ports(spec),
        host_network=spec.host_network,
        active=status.phase not in _TERMINATED and not (metadata.deletion_timestamp and _have_ended(status)),
        since=max(metadata.creation_timestamp or "", status.start_time or ""),
        deleted=bool(metadata.deletion_timestamp),
    )


def _have_ended(status: wire.PodStatus) -> bool:
    """Whether all containers have terminated. Of a deleted pod none is started again, so its sandbox goes too."""
    containers = [
        *(status.container_statuses or ()),
        *(status.init_container_statuses or ()),
        *(status.ephemeral_container_statuses or ()),
    ]
    return bool(status.container_statuses) and all(c.state and c.state.terminated is not None for c in containers)


def _uid(metadata: wire.PodMetadata) -> str:
    """The uid by which kubelet and runtime know the pod.

    A static pod's object is only its mirror: the kubelet gives the pod itself another uid (a hash of its
    manifest, unless that names one), starts its sandbox under that, and notes it in these annotations
    (pkg/kubelet/config/common.go, pkg/kubelet/pod/mirror_client.go). ``config.mirror`` cannot be changed later.
    """
    annotations = metadata.annotations
    return (annotations and (annotations.mirror or annotations.hash)) or metadata.uid


def _ports(spec: wire.PodSpec) -> tuple[NamedPort, ...]:
    """Named ports of containers, and of init containers that go on running as sidecars."""
    containers = list(spec.containers or ())
    containers += [c for c in spec.init_containers or () if c.restart_policy == "Always"]
    ports = [
        NamedPort(port.name, _PROTOCOLS[port.protocol], port.container_port)
        for container in containers
        for port in container.ports or ()
        # A protocol that NetworkPolicy cannot name is nothing that a named port could resolve to.
        if port.name and port.protocol in _PROTOCOLS
    ]
    return _shared(tuple(ports)) if ports else ()


def _namespace(namespace: wire.Plain) -> Namespace:
    metadata = namespace.metadata
    if not metadata.name:
        raise ValueError("metadata.name must not be empty")
    return Namespace(metadata.name, _labels(metadata.labels))


def _policy(policy: wire.WirePolicy) -> NetworkPolicy:
    return _parsed(policy, parse_network_policy)


def _parsed(policy: wire.WirePolicy, parse: Callable[[object], P]) -> P:
    """A spec that is beyond reading is one of which nothing is understood: it fails closed, as such do."""
    metadata = policy.metadata
    named = {"namespace": metadata.namespace, "name": metadata.name, "uid": metadata.uid}
    try:
        spec = msgspec.json.decode(policy.spec) if policy.spec else None
        return parse({"metadata": named, "spec": spec})
    except Rejected as error:
        raise ValueError(str(error)) from error
    except UNDECODABLE as error:
        unreadable = (f"spec: cannot be read: {str(error)[:_LONGEST_REASON]}",)
    try:
        closed = parse({"metadata": named, "spec": "unreadable"})
    except Rejected as error:
        raise ValueError(str(error)) from error
    return replace(closed, problems=unreadable + closed.problems)


def _salvaged(parse: Callable[[object], P]) -> Salvage[P]:
    """A policy of which something beside its spec is beyond reading: what the spec says is in force all the
    same."""

    def salvaged(meta: wire.Name, parts: dict[str, bytes], reason: str) -> P:
        metadata = wire.PolicyMetadata(meta.name, meta.namespace, meta.uid)
        understood: P = _parsed(wire.WirePolicy(metadata, msgspec.Raw(parts.get("spec", b""))), parse)
        problems = (f"cannot be read wholly: {reason}", *understood.problems)
        return replace(understood, problems=problems)

    return salvaged


def _node(node: wire.WireNode) -> NodeRecord:
    metadata, spec = node.metadata, node.spec
    if not metadata.name:
        raise ValueError("metadata.name must not be empty")
    cidrs = spec.pod_cidrs or [spec.pod_cidr]
    return NodeRecord(
        name=metadata.name,
        uid=metadata.uid,
        addresses=_node_addresses(node.status.addresses or ()),
        pod_cidrs=tuple([canonical_cidr(cidr) for cidr in cidrs if cidr]),
        labels=_labels(metadata.labels),
        unschedulable=spec.unschedulable,
    )


def _node_addresses(addresses: Sequence[wire.NodeAddress]) -> tuple[str, ...]:
    """InternalIPs, then ExternalIPs. The API does not check that they are addresses: what is none is left out."""
    found: dict[str, None] = {}
    for kind in ("InternalIP", "ExternalIP"):
        for address in addresses:
            if address.type == kind:
                with suppress(ValueError):
                    found[_address(address.address)] = None
    return tuple(found)


PODS = Kind("Pod", "v1", "/api/v1/pods", key=lambda pod: pod.key, wire_type=wire.WirePod, convert=_pod)
NAMESPACES = Kind(
    "Namespace",
    "v1",
    "/api/v1/namespaces",
    key=lambda namespace: ("", namespace.name),
    wire_type=wire.Plain,
    convert=_namespace,
)
POLICIES = Kind(
    "NetworkPolicy",
    "networking.k8s.io/v1",
    "/apis/networking.k8s.io/v1/networkpolicies",
    key=lambda policy: policy.key,
    wire_type=wire.WirePolicy,
    convert=_policy,
    salvage=_salvaged(parse_network_policy),
)


def _cluster_kind(
    kind: PolicyKind, version: str, plural: str, parse: Callable[[object], ClusterPolicy]
) -> Kind[ClusterPolicy]:
    """A cluster-scoped kind of the group policy.networking.k8s.io."""
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
"""The cluster-scoped policy kinds: each is there only while its CustomResourceDefinition is installed."""

NODES = Kind(
    "Node", "v1", "/api/v1/nodes", key=lambda node: ("", node.name), wire_type=wire.WireNode, convert=_node
)
