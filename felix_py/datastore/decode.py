"""From the API's bytes to the records that the rest of the agent reasons with.

An object that cannot be understood becomes :class:`Unusable`; it never breaks the list or the watch it came with.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec
from policy.parse import Rejected, parse_network_policy

from felix_py.datastore import wire
from felix_py.datastore.client import error_from_status
from felix_py.records import NodeRecord
from policy.model import Labels, NamedPort, Namespace, NetworkPolicy, ObjectKey, Pod, Protocol

R = TypeVar("R")

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
"""Annotation of the bookmark that ends the first part of a WatchList (KEP-3157)."""

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
class Change(Generic[R]):
    """One line of a watch. ``what`` None: a bookmark. ``initial_end``: the one that ends a WatchList's list."""

    what: R | Gone | Unusable | None
    resource_version: str
    initial_end: bool = False


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """One kind of object to watch.

    ``convert`` takes one object's JSON and returns its record and resourceVersion; it raises ValueError (as all
    of msgspec's errors are) with the reason why the object cannot be used.
    """

    name: str
    api_version: str
    path: str
    key: Callable[[R], ObjectKey]
    convert: Callable[[bytes | msgspec.Raw], tuple[R, str]]

    def listing(self, body: bytes) -> Listing[R]:
        """Decode one page of a list.

        Raises:
            Unreadable: it is not a list.
        """
        try:
            page = _LIST.decode(body)
        except msgspec.MsgspecError as error:
            raise Unreadable(f"not a list: {error}") from error
        found = [self._object(item)[0] for item in page.items or ()]
        return Listing(found, page.metadata.resource_version, page.metadata.continue_)

    def change(self, line: bytes) -> Change[R]:
        """Decode one line of a watch.

        Raises:
            ApiError: the server ended the watch with an ERROR event.
            Unreadable: it is not an event, or its object has no name.
        """
        try:
            event = _LINE.decode(line)
            match event.type:
                case "ADDED" | "MODIFIED":
                    what, version = self._object(event.object)
                    if isinstance(what, Unusable) and not what.key[1]:
                        raise Unreadable(f"event of an object without a name: {what.reason}")
                    return Change(what, version)
                case "DELETED":
                    name = _NAMED.decode(event.object).metadata
                    return Change(Gone((name.namespace, name.name)), name.resource_version)
                case "BOOKMARK":
                    meta = _BOOKMARK.decode(event.object).metadata
                    end = (meta.annotations or {}).get(INITIAL_EVENTS_END) == "true"
                    return Change(None, meta.resource_version, end)
                case "ERROR":
                    raise error_from_status(_STATUS.decode(event.object), 500)
        except msgspec.MsgspecError as error:
            raise Unreadable(f"not a watch event: {error}") from error
        raise Unreadable(f"unknown event type {event.type!r}")

    def _object(self, raw: msgspec.Raw) -> tuple[R | Unusable, str]:
        try:
            return self.convert(raw)
        except ValueError as error:
            reason = str(error)
        except Exception as error:
            # A defect of ours in one object's conversion must not keep all others from being known.
            reason = f"{type(error).__name__}: {error}"
        try:
            name = _NAMED.decode(raw).metadata
        except msgspec.MsgspecError:
            return Unusable(("", ""), "", reason), ""
        return Unusable((name.namespace, name.name), name.uid, reason), name.resource_version


_LIST = msgspec.json.Decoder(wire.ObjectList)
_LINE = msgspec.json.Decoder(wire.WatchLine)
_NAMED = msgspec.json.Decoder(wire.Named)
_BOOKMARK = msgspec.json.Decoder(wire.Bookmark)
_STATUS = msgspec.json.Decoder(wire.Status)
_POD = msgspec.json.Decoder(wire.WirePod)
_PLAIN = msgspec.json.Decoder(wire.Plain)
_NODE = msgspec.json.Decoder(wire.WireNode)


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
        return str(ipaddress.IPv6Address(_without_scope(text)))
    return text


def _network(text: str) -> str:
    return str(ipaddress.ip_network(_without_scope(text)))


def _without_scope(text: str) -> str:
    """ipaddress takes any text at all behind a ``%`` and hands it on."""
    if "%" in text:
        raise ValueError(f"{text!r} has a scope, which no address in the API may have")
    return text


# --- kinds -----------------------------------------------------------------------------------------------------


def _named(metadata: wire.Metadata, *, namespaced: bool = False) -> str:
    if not metadata.name or (namespaced and not metadata.namespace):
        raise ValueError("metadata has no name" if not metadata.name else "metadata has no namespace")
    return metadata.name


def _pod(raw: bytes | msgspec.Raw) -> tuple[Pod, str]:
    pod = _POD.decode(raw)
    metadata, spec, status = pod.metadata, pod.spec, pod.status
    texts = [ip.ip for ip in status.pod_ips or ()] or [status.pod_ip]
    record = Pod(
        name=_named(metadata, namespaced=True),
        namespace=_shared(metadata.namespace),
        uid=metadata.uid,
        node=_shared(spec.node_name),
        labels=_labels(metadata.labels),
        addresses=tuple([_address(text) for text in texts if text]),
        ports=_ports(spec),
        host_network=spec.host_network,
        active=status.phase not in _TERMINATED,
    )
    return record, metadata.resource_version


def _ports(spec: wire.PodSpec) -> tuple[NamedPort, ...]:
    """Named ports of containers, and of init containers that go on running as sidecars."""
    containers = list(spec.containers or ())
    containers += [c for c in spec.init_containers or () if c.restart_policy == "Always"]
    return _shared(  # type: ignore[no-any-return]
        tuple(
            [
                NamedPort(port.name, _PROTOCOLS[port.protocol], port.container_port)
                for container in containers
                for port in container.ports or ()
                # A protocol that NetworkPolicy cannot name is nothing that a named port could resolve to.
                if port.name and port.protocol in _PROTOCOLS
            ]
        )
    )


def _namespace(raw: bytes | msgspec.Raw) -> tuple[Namespace, str]:
    metadata = _PLAIN.decode(raw).metadata
    return Namespace(_named(metadata), _labels(metadata.labels)), metadata.resource_version


def _policy(raw: bytes | msgspec.Raw) -> tuple[NetworkPolicy, str]:
    version = _NAMED.decode(raw).metadata.resource_version
    try:
        return parse_network_policy(msgspec.json.decode(raw)), version
    except Rejected as error:
        raise ValueError(str(error)) from error


def _node(raw: bytes | msgspec.Raw) -> tuple[NodeRecord, str]:
    node = _NODE.decode(raw)
    metadata, spec = node.metadata, node.spec
    cidrs = spec.pod_cidrs or [spec.pod_cidr]
    record = NodeRecord(
        name=_named(metadata),
        uid=metadata.uid,
        addresses=tuple(_node_addresses(node.status.addresses or ())),
        pod_cidrs=tuple([_network(cidr) for cidr in cidrs if cidr]),
        labels=_labels(metadata.labels),
        unschedulable=spec.unschedulable,
    )
    return record, metadata.resource_version


def _node_addresses(addresses: Iterable[wire.NodeAddress]) -> Iterable[str]:
    """InternalIPs, then ExternalIPs. The API does not check that they are addresses: what is none is left out."""
    found: dict[str, None] = {}
    for kind in ("InternalIP", "ExternalIP"):
        for address in addresses:
            if address.type == kind:
                try:
                    found[_address(address.address)] = None
                except ValueError:
                    continue
    return found


PODS: Kind[Pod] = Kind("Pod", "v1", "/api/v1/pods", lambda pod: pod.key, _pod)
NAMESPACES: Kind[Namespace] = Kind("Namespace", "v1", "/api/v1/namespaces", lambda ns: ("", ns.name), _namespace)
POLICIES: Kind[NetworkPolicy] = Kind(
    "NetworkPolicy",
    "networking.k8s.io/v1",
    "/apis/networking.k8s.io/v1/networkpolicies",
    lambda policy: policy.key,
    _policy,
)
NODES: Kind[NodeRecord] = Kind("Node", "v1", "/api/v1/nodes", lambda node: ("", node.name), _node)
