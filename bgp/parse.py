"""API objects of felixpy.io/v1alpha1 as the records of :mod:`bgp.resources`.

An object is taken wholly or not at all: a session with half of its settings, without its password or its filter
say, is worse than none. Whoever calls keeps the record that was good last. Fields of a spec that only a later
version knows are passed over, and told by :func:`unknown`; those inside of a field are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import TypeVar

from bgp import fields
from bgp.fields import BGP_PORT, BGPConfigError
from bgp.resources import (
    Bfd,
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    FilterRule,
    NextHopMode,
    Operations,
    PrefixAdvertisement,
    Problem,
    SecretKey,
    SourceAddress,
)

CONFIGURATION = "BGPConfiguration"
PEER = "BGPPeer"
FILTER = "BGPFilter"

DEFAULT = "default"
"""Name of the BGPConfiguration of all nodes; one node's is called ``node.NAME``."""

_LONGEST_REASON = 500
_FAMILIES = {"ipv4": 4, "ipv6": 6}
_MOST_PRIORITY = 2**31 - 2
_SECRET_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_SECRET_KEY = re.compile(r"[A-Za-z0-9._-]{1,253}")

T = TypeVar("T")
E = TypeVar("E", bound=Enum)
R = TypeVar("R", BGPConfiguration, BGPPeer, BGPFilter)

Check = Callable[[str, object], T]
"""Returns what a field's value means; raises BGPConfigError, whose message begins with the path."""


class Bad(Exception):
    """An object that cannot be used; ``problems`` has each of its fields that is wrong."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{one.field}: {one.reason}" for one in problems))
        self.problems = tuple(problems)


def configuration(name: str, spec: object) -> BGPConfiguration:
    """The spec (decoded JSON) of the BGPConfiguration of that name. Raises Bad."""
    read = _Reader(CONFIGURATION, name, spec)
    if name != DEFAULT and not name.startswith("node."):
        read.refuse("metadata.name", f"must be {DEFAULT}, for all nodes, or node.NAME, for one")
    cidrs = _list_of(_cidr_of)
    found = BGPConfiguration(
        name=name,
        as_number=read.get("asNumber", fields.asn),
        node_to_node_mesh_enabled=read.get("nodeToNodeMeshEnabled", fields.boolean),
        node_mesh_password=read.get("nodeMeshPassword", _secret_key),
        node_mesh_max_restart_time=read.get("nodeMeshMaxRestartTime", fields.seconds),
        listen_port=read.get("listenPort", _between(1, 65535)),
        bind_mode=read.get("bindMode", _one_of("None", "NodeIP")) or "",
        service_cluster_ips=read.get("serviceClusterIPs", cidrs),
        service_external_ips=read.get("serviceExternalIPs", cidrs),
        service_load_balancer_ips=read.get("serviceLoadBalancerIPs", cidrs),
        service_load_balancer_aggregation=read.get(
            "serviceLoadBalancerAggregation", _one_of("Enabled", "Disabled")
        )
        or "",
        communities=read.get("communities", _named_communities) or {},
        prefix_advertisements=read.get("prefixAdvertisements", _list_of(_advertisement)),
        ignored_interfaces=read.get("ignoredInterfaces", _list_of(_interface_pattern)),
        static_prefixes=read.get("staticPrefixes", cidrs),
        max_paths=read.get("maxPaths", _between(1, 256)),
    )
    if found.node_to_node_mesh_enabled is False:
        for field, given in (
            ("nodeMeshPassword", found.node_mesh_password),
            ("nodeMeshMaxRestartTime", found.node_mesh_max_restart_time),
        ):
            if given is not None:
                read.refuse(field, "cannot be set when nodeToNodeMeshEnabled is false")
    return read.done(found)


def peer(name: str, spec: object) -> BGPPeer:
    """The spec (decoded JSON) of the BGPPeer of that name. Raises Bad."""
    read = _Reader(PEER, name, spec)
    address, port, interface = read.get("peerIP", fields.peer_address) or ("", BGP_PORT, "")
    found = BGPPeer(
        name=name,
        node=read.get("node", fields.text) or "",
        node_selector=read.get("nodeSelector", fields.label_selector) or "",
        peer_ip=address,
        port=port,
        interface=interface,
        peer_selector=read.get("peerSelector", fields.label_selector) or "",
        as_number=read.get("asNumber", fields.asn),
        local_as_number=read.get("localASNumber", fields.asn),
        num_allowed_local_as_numbers=read.get("numAllowedLocalASNumbers", _between(0, 255)) or 0,
        password=read.get("password", _secret_key),
        source_address=read.get("sourceAddress", _enum(SourceAddress)) or SourceAddress.USE_NODE_IP,
        keepalive_time=read.get("keepaliveTime", lambda path, value: fields.seconds(path, value, most=21845)),
        hold_time=read.get("holdTime", fields.hold_time),
        max_restart_time=read.get("maxRestartTime", fields.seconds),
        ttl_security=read.get("ttlSecurity", _between(0, 254)) or 0,
        reachable_by=read.get("reachableBy", fields.address) or "",
        next_hop_mode=read.get("nextHopMode", _enum(NextHopMode)) or NextHopMode.AUTO,
        keep_original_next_hop=read.get("keepOriginalNextHop", fields.boolean) or False,
        filters=read.get("filters", _list_of(fields.text)) or (),
        reverse_peering=read.get("reversePeering", _one_of("Auto", "Manual")) != "Manual",
        families=read.get("families", _families) or (),
        bfd=read.get("bfd", _bfd),
        prefix_limit=read.get("prefixLimit", _between(1, 2**31 - 1)),
    )
    _judge_peer(read, found)
    return read.done(found)


def _judge_peer(read: _Reader, found: BGPPeer) -> None:
    """What fields of a peer say of each other; the messages are those of the schema's rules."""
    given = read.given
    if "node" in given and "nodeSelector" in given:
        read.refuse("node", "node and nodeSelector cannot both be set")
    if "peerIP" in given and "peerSelector" in given:
        read.refuse("peerIP", "peerIP and peerSelector cannot both be set")
    if "peerIP" not in given and "peerSelector" not in given:
        read.refuse("peerIP", "peerIP or peerSelector must be set")
    if "peerSelector" in given and "asNumber" in given:
        read.refuse("asNumber", "asNumber must be empty when peerSelector is set")
    if "reachableBy" in given and "peerIP" not in given:
        read.refuse("reachableBy", "reachableBy must be empty when peerIP is empty")
    if found.reachable_by and found.peer_ip and (":" in found.reachable_by) != (":" in found.peer_ip):
        read.refuse("reachableBy", f"must be of the same family as peerIP {found.peer_ip}")
    if found.keep_original_next_hop and "nextHopMode" in given:
        read.refuse("keepOriginalNextHop", "keepOriginalNextHop and nextHopMode cannot both be set")
    if found.keepalive_time and found.hold_time and found.keepalive_time >= found.hold_time:
        read.refuse("keepaliveTime", "must be shorter than holdTime")


def filter_(name: str, spec: object) -> BGPFilter:
    """The spec (decoded JSON) of the BGPFilter of that name. Raises Bad."""
    read = _Reader(FILTER, name, spec)
    return read.done(
        BGPFilter(
            name=name,
            export_v4=read.get("exportV4", _list_of(_rule_of(4))) or (),
            export_v6=read.get("exportV6", _list_of(_rule_of(6))) or (),
            import_v4=read.get("importV4", _list_of(_rule_of(4))) or (),
            import_v6=read.get("importV6", _list_of(_rule_of(6))) or (),
        )
    )


_CONFIGURATION_FIELDS = (
    "asNumber",
    "nodeToNodeMeshEnabled",
    "nodeMeshPassword",
    "nodeMeshMaxRestartTime",
    "listenPort",
    "bindMode",
    "serviceClusterIPs",
    "serviceExternalIPs",
    "serviceLoadBalancerIPs",
    "serviceLoadBalancerAggregation",
    "communities",
    "prefixAdvertisements",
    "ignoredInterfaces",
    "staticPrefixes",
    "maxPaths",
)
_PEER_FIELDS = (
    "node",
    "nodeSelector",
    "peerIP",
    "peerSelector",
    "asNumber",
    "localASNumber",
    "numAllowedLocalASNumbers",
    "password",
    "sourceAddress",
    "keepaliveTime",
    "holdTime",
    "maxRestartTime",
    "ttlSecurity",
    "reachableBy",
    "nextHopMode",
    "keepOriginalNextHop",
    "filters",
    "reversePeering",
    "families",
    "bfd",
    "prefixLimit",
)
_FILTER_FIELDS = ("exportV4", "exportV6", "importV4", "importV6")
KNOWN: Mapping[str, tuple[str, ...]] = {
    CONFIGURATION: _CONFIGURATION_FIELDS,
    PEER: _PEER_FIELDS,
    FILTER: _FILTER_FIELDS,
}
"""Kind -> the fields of its spec."""


def unknown(kind: str, name: str, spec: object) -> list[Problem]:
    """What is to be told of fields that a later version's definition has."""
    return [Problem(kind, name, field, fields.UNKNOWN) for field in fields.unknown(spec, KNOWN[kind])]


class _Reader:
    """Reads the fields of one spec and collects what is wrong with them. ``given``: those that it has."""

    def __init__(self, kind: str, name: str, spec: object) -> None:
        self._kind = kind
        self._name = name
        self._problems: list[Problem] = []
        self.given: Mapping[str, object] = {}
        try:
            found = fields.any_mapping("spec", {} if spec is None else spec)
        except BGPConfigError as error:
            self._note(error)
        else:
            # Writers of Go send empty texts for what is not set.
            self.given = {key: value for key, value in found.items() if value is not None and value != ""}

    def get(self, key: str, check: Check[T]) -> T | None:
        """The meaning of a field; None if the spec does not have it, or if it is wrong."""
        if key not in self.given:
            return None
        try:
            return check(key, self.given[key])
        except BGPConfigError as error:
            self._note(error)
            return None

    def refuse(self, field: str, reason: str) -> None:
        self._problems.append(Problem(self._kind, self._name, field, reason))

    def done(self, record: R) -> R:
        """Returns the record; raises Bad if anything was wrong."""
        if self._problems:
            raise Bad(self._problems)
        return record

    def _note(self, error: BGPConfigError) -> None:
        field, _, reason = str(error).partition(": ")
        self.refuse(field, reason[:_LONGEST_REASON])


# --- fields ----------------------------------------------------------------------------------------------------


def _between(least: int, most: int) -> Check[int]:
    return lambda path, value: fields.integer(path, value, least, most)


def _one_of(*known: str) -> Check[str]:
    def check(path: str, value: object) -> str:
        given = fields.text(path, value)
        if given not in known:
            raise BGPConfigError(f"{path}: {given[:80]!r} is not one of {', '.join(known)}")
        return given

    return check


def _enum(kind: type[E]) -> Check[E]:
    check = _one_of(*(str(member.value) for member in kind))
    return lambda path, value: kind(check(path, value))


def _list_of(check: Check[T]) -> Check[tuple[T, ...]]:
    """A list, each item by ``check``."""
    return lambda path, value: tuple(
        check(f"{path}[{index}]", item) for index, item in enumerate(fields.sequence(path, value))
    )


def _secret_key(path: str, value: object) -> SecretKey:
    found = fields.mapping(path, value, ("secretKeyRef",))
    path = f"{path}.secretKeyRef"
    reference = fields.mapping(path, found.get("secretKeyRef"), ("name", "key", "optional"))
    if reference.get("optional"):
        raise BGPConfigError(f"{path}.optional: a session that has a password cannot do without")
    name, key = (fields.text(f"{path}.{it}", fields.required(path, reference, it)) for it in ("name", "key"))
    if not _SECRET_NAME.fullmatch(name):
        raise BGPConfigError(f"{path}.name: {name[:80]!r} is not the name of a Secret")
    if not _SECRET_KEY.fullmatch(key):
        raise BGPConfigError(f"{path}.key: {key[:80]!r} is not a key of a Secret")
    return SecretKey(name, key)


def _cidr_of(path: str, value: object) -> str:
    found = fields.mapping(path, value, ("cidr",))
    return fields.cidr(f"{path}.cidr", fields.required(path, found, "cidr"))


def _named_communities(path: str, value: object) -> Mapping[str, str]:
    named: dict[str, str] = {}
    for index, item in enumerate(fields.sequence(path, value)):
        where = f"{path}[{index}]"
        found = fields.mapping(where, item, ("name", "value"))
        name = fields.text(f"{where}.name", fields.required(where, found, "name"))
        if not name or ":" in name or name in named:
            raise BGPConfigError(f"{where}.name: must be a name without a colon, which is given once")
        named[name] = fields.community(f"{where}.value", fields.required(where, found, "value"))
    return named


def _advertisement(path: str, value: object) -> PrefixAdvertisement:
    found = fields.mapping(path, value, ("cidr", "communities", "localPreference", "med"))
    return PrefixAdvertisement(
        cidr=fields.cidr(f"{path}.cidr", fields.required(path, found, "cidr")),
        communities=_list_of(_community_or_name)(f"{path}.communities", found.get("communities") or ()),
        local_preference=_optional(path, found, "localPreference", _between(0, 2**32 - 1)),
        med=_optional(path, found, "med", _between(0, 2**32 - 1)),
    )


def _community_or_name(path: str, value: object) -> str:
    given = fields.text(path, value)
    return fields.community(path, given) if ":" in given or not given else given


def _interface_pattern(path: str, value: object) -> str:
    """An interface name, in which ``*`` stands for any characters."""
    given = fields.text(path, value)
    fields.interface(path, given.replace("*", "-"))
    return given


def _families(path: str, value: object) -> tuple[int, ...]:
    found = _list_of(_one_of(*_FAMILIES))(path, value)
    return tuple(sorted({_FAMILIES[family] for family in found}))


def _bfd(path: str, value: object) -> Bfd:
    found = fields.mapping(path, value, ("intervalMilliseconds", "detectMultiplier", "multihop"))
    default = Bfd()
    interval = _optional(path, found, "intervalMilliseconds", _between(10, 60000))
    multiplier = _optional(path, found, "detectMultiplier", _between(1, 255))
    return Bfd(
        interval=default.interval if interval is None else interval,
        detect_multiplier=default.detect_multiplier if multiplier is None else multiplier,
        multihop=_optional(path, found, "multihop", fields.boolean) or False,
    )


def _optional(path: str, found: Mapping[str, object], key: str, check: Check[T]) -> T | None:
    value = found.get(key)
    return None if value is None or value == "" else check(f"{path}.{key}", value)


# --- filters ---------------------------------------------------------------------------------------------------

_RULE_FIELDS = (
    "action",
    "cidr",
    "matchOperator",
    "prefixLength",
    "source",
    "peerType",
    "interface",
    "communities",
    "asPathPrefix",
    "priority",
    "operations",
)


def _rule_of(family: int) -> Check[FilterRule]:
    return lambda path, value: _rule(path, value, family)


def _rule(path: str, value: object, family: int) -> FilterRule:
    found = fields.mapping(path, value, _RULE_FIELDS)
    rule = FilterRule(
        accept=_one_of("Accept", "Reject")(f"{path}.action", fields.required(path, found, "action")) == "Accept",
        cidr=_optional(path, found, "cidr", lambda at, given: fields.cidr(at, given, family)) or "",
        match_operator=_optional(path, found, "matchOperator", _one_of("Equal", "NotEqual", "In", "NotIn")) or "",
        prefix_length=_prefix_length(path, found, family),
        source=_optional(path, found, "source", _one_of("RemotePeers")) or "",
        peer_type=_optional(path, found, "peerType", _one_of("eBGP", "iBGP")) or "",
        interface=_optional(path, found, "interface", _interface_pattern) or "",
        communities=_optional(path, found, "communities", _community_values) or (),
        as_path_prefix=_optional(path, found, "asPathPrefix", _list_of(fields.asn)) or (),
        priority=_optional(path, found, "priority", _between(1, _MOST_PRIORITY)),
        operations=_optional(path, found, "operations", _operations) or Operations(),
    )
    if bool(rule.cidr) != bool(rule.match_operator):
        raise BGPConfigError(f"{path}: cidr and matchOperator must both be set or both be empty")
    if rule.prefix_length != (None, None) and not rule.cidr:
        raise BGPConfigError(f"{path}: cidr is required when prefixLength is set")
    if found.get("operations") and not rule.accept:
        raise BGPConfigError(f"{path}: operations may only be used with action Accept")
    return rule


def _prefix_length(path: str, rule: Mapping[str, object], family: int) -> tuple[int | None, int | None]:
    path = f"{path}.prefixLength"
    found = fields.mapping(path, rule.get("prefixLength") or {}, ("min", "max"))
    inside = _between(0, 32 if family == 4 else 128)
    least, most = (_optional(path, found, key, inside) for key in ("min", "max"))
    if least is not None and most is not None and least > most:
        raise BGPConfigError(f"{path}: min is above max, so nothing matches")
    return least, most


def _community_values(path: str, value: object) -> tuple[str, ...]:
    found = fields.mapping(path, value, ("values",))
    values = _list_of(fields.community)(f"{path}.values", fields.required(path, found, "values"))
    if not values:
        raise BGPConfigError(f"{path}.values: must not be empty")
    return values


def _operations(path: str, value: object) -> Operations:
    """The ordered list folded into one record: what is prepended later stands before what was there."""
    communities: tuple[str, ...] = ()
    prepend: tuple[int, ...] = ()
    numbers: dict[str, int] = {}
    for index, item in enumerate(fields.sequence(path, value)):
        where = f"{path}[{index}]"
        found = fields.mapping(where, item, _OPERATIONS)
        given = [(key, one) for key, one in found.items() if one is not None]
        if len(given) != 1:
            raise BGPConfigError(f"{where}: exactly one operation must be set")
        ((operation, argument),) = given
        where = f"{where}.{operation}"
        key = "prefix" if operation == "prependASPath" else "value"
        argument = fields.required(where, fields.mapping(where, argument, (key,)), key)
        where = f"{where}.{key}"
        if operation == "addCommunity":
            communities += (fields.community(where, argument),)
        elif operation == "prependASPath":
            prepend = _list_of(fields.asn)(where, argument) + prepend
        elif operation == "setPriority":
            numbers[operation] = fields.integer(where, argument, 1, _MOST_PRIORITY)
        else:
            numbers[operation] = fields.integer(where, argument, 0, 2**32 - 1)
    return Operations(
        add_communities=tuple(dict.fromkeys(communities)),
        prepend=prepend,
        priority=numbers.get("setPriority"),
        med=numbers.get("setMED"),
        local_preference=numbers.get("setLocalPreference"),
    )


_OPERATIONS = ("addCommunity", "prependASPath", "setPriority", "setMED", "setLocalPreference")
