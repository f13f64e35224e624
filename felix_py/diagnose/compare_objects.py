"""Comparison of the kernel's IP sets, routes, interfaces and settings with the intended ones."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from felix_py.dataplane.ipset_commands import Commands, Shape
from felix_py.dataplane.ipsets import is_ours
from felix_py.dataplane.uplink import interface_state
from felix_py.diagnose.difference import Difference, Problem
from felix_py.diagnose.owners import Owners
from felix_py.layout import INTERFACE_PREFIX
from felix_py.netlink import ipset_members
from felix_py.netlink import routes as route_messages
from felix_py.records import Lease, NextHop, Route, RouteKind, SetSpec, Update
from felix_py.refs import LinkRef, MemberRef, RouteRef, SetRef, SysctlRef
from policy.model import Family

_AF = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
_TABLE_MAIN, _UNICAST = 254, 1

_SETTINGS = {Family.V4: ("ipv4/ip_forward", "1"), Family.V6: ("ipv6/conf/all/forwarding", "1")}


# --- sets --------------------------------------------------------------------------------------------


def set_differences(
    wanted: Update, owners: Owners, pardoned: Collection[str], *, strays: bool
) -> Iterator[Difference]:
    """Compare all sets and members with their marks; ``pardoned`` addresses are ignored. Raises OSError."""
    commands = Commands()
    try:
        found = {name: read for name in commands.names() if is_ours(name) and (read := commands.read(name))}
    finally:
        commands.close()
    for name, spec in sorted(wanted.sets.items()):
        if spec is not None:
            yield from _set(spec, wanted.members.get(name, {}), found.get(name), owners, pardoned)
    for name in sorted(found.keys() - wanted.sets.keys()):
        if strays:
            family = Family.V6 if name.startswith("felix6") else Family.V4
            yield Difference(SetRef(name), Problem.EXTRA, owners.set(family, name))


def _set(
    spec: SetSpec,
    members: Mapping[str, int | None],
    found: tuple[Shape, dict[bytes, int]] | None,
    owners: Owners,
    pardoned: Collection[str],
) -> Iterator[Difference]:
    about = owners.set(spec.family, spec.name)
    if found is None:
        yield Difference(SetRef(spec.name), Problem.MISSING, about)
        return
    shape, actual = found
    if shape != Shape.of(spec):
        yield Difference(SetRef(spec.name), Problem.ALTERED, about, spec.type, shape.type)
        return
    keys: dict[bytes, tuple[str, int]] = {}
    for text, mark in members.items():
        with suppress(ValueError):  # the agent cannot write it either, and says so
            key = ipset_members.encode(spec.type, spec.family, text)
            keys[key] = (text, (mark or 0) << 32 | spec.mark_mask if spec.mark_mask else 0)
    for key in sorted(keys.keys() | actual.keys()):
        text = keys[key][0] if key in keys else ipset_members.decode(key)
        if text.partition(",")[0] in pardoned:
            continue
        ref, place = MemberRef(spec.name, text), f"member {text} of set {spec.name}"
        about = owners.member(spec.family, spec.name, text)
        if key not in actual:
            yield Difference(ref, Problem.MISSING, about, _mark(keys[key][1]), place=place)
        elif key not in keys:
            yield Difference(ref, Problem.EXTRA, about, "", _mark(actual[key]), place)
        elif keys[key][1] != actual[key]:
            yield Difference(ref, Problem.ALTERED, about, _mark(keys[key][1]), _mark(actual[key]), place)


def _mark(value: int) -> str:
    return f"mark {value >> 32:#x}/{value & 0xFFFFFFFF:#x}" if value else ""


# --- routes ------------------------------------------------------------------------------------------


def route_differences(
    wanted: Update,
    families: Collection[Family],
    protocols: Collection[int],
    owners: Owners,
    pardoned: Collection[str],
    *,
    strays: bool,
) -> Iterator[Difference]:
    """Compare our routes of some protocol numbers; ``pardoned`` addresses are ignored. Raises OSError."""
    found = _routes(families, protocols)
    routes = {key: route for key, route in wanted.routes.items() if route and key.protocol in protocols}
    for key in sorted(routes.keys() | found.keys(), key=lambda key: (key.protocol, key.destination)):
        if key.destination.partition("/")[0] in pardoned:
            continue
        place = f"{key} (protocol {key.protocol})"
        route, there = routes.get(key), found.get(key, [])
        about = owners.address(key.destination) or _purpose(route)
        if route is None:
            if strays and there:
                yield Difference(key, Problem.EXTRA, about, "", _packed(there[0]), place)
        elif not there:
            yield Difference(key, Problem.MISSING, about, _route(route), place=place)
        elif not any(_satisfied(route, one) for one in there):
            yield Difference(key, Problem.ALTERED, about, _route(route), _packed(there[0]), place)
        else:
            for one in there:
                if one.metric != route_messages.normal_metric(one.destination[0], route.metric):
                    yield Difference(key, Problem.EXTRA, about, _route(route), _packed(one), place)


def _routes(
    families: Collection[Family], protocols: Collection[int]
) -> dict[RouteRef, list[route_messages.Packed]]:
    """The kernel's routes as pyroute2 decodes them, independently of the code that wrote them."""
    from pyroute2 import IPRoute

    found: dict[RouteRef, list[route_messages.Packed]] = {}
    with IPRoute() as netlink:
        for family in families:
            for answer in netlink.get_routes(family=_AF[family], table=_TABLE_MAIN):
                if answer["proto"] not in protocols or answer["tos"]:
                    continue
                route = _decoded(family, answer)
                key = RouteRef(route_messages.destination_text(route.destination), route.protocol)
                found.setdefault(key, []).append(route)
    return found


def _decoded(family: Family, answer: Any) -> route_messages.Packed:
    def packed(text: str | None) -> bytes:
        return socket.inet_pton(_AF[family], text) if text else b""

    hops: list[route_messages.Hop] = []
    if answer["type"] == _UNICAST:
        if paths := answer.get_attr("RTA_MULTIPATH"):
            hops = [(packed(path.get_attr("RTA_GATEWAY")), path["oif"]) for path in paths]
        else:
            hops = [(packed(answer.get_attr("RTA_GATEWAY")), answer.get_attr("RTA_OIF", 0))]
    network = packed(answer.get_attr("RTA_DST")) or bytes(family.bits // 8)
    return route_messages.Packed(
        destination=(family, network, answer["dst_len"]),
        protocol=answer["proto"],
        kind=answer["type"],
        scope=answer["scope"],
        source=packed(answer.get_attr("RTA_PREFSRC")),
        hops=tuple(sorted(hops)),
        metric=route_messages.normal_metric(family, answer.get_attr("RTA_PRIORITY", 0)),
    )


def _purpose(route: Route | None) -> str:
    if route is None:
        return "no pod that is known"
    return "this node's pod addresses" if route.kind is RouteKind.BLACKHOLE else "a route to another node's pods"


def _satisfied(wanted: Route, found: route_messages.Packed) -> bool:
    try:
        packed = route_messages.pack(wanted, found.destination, socket.if_nametoindex)
    except (ValueError, OSError):
        return False
    return found.satisfies(packed)


def _route(route: Route) -> str:
    if route.kind is RouteKind.BLACKHOLE:
        return "blackhole"
    return _with_metric(", ".join(map(_hop, route.next_hops)), route.metric)


def _hop(hop: NextHop) -> str:
    parts = [f"via {hop.gateway}" if hop.gateway else "", f"dev {hop.interface}" if hop.interface else ""]
    return " ".join(filter(None, parts))


def _packed(route: route_messages.Packed) -> str:
    hops = []
    for gateway, index in route.hops:
        family = socket.AF_INET if len(gateway) == 4 else socket.AF_INET6
        try:
            name = socket.if_indextoname(index) if index else ""
        except OSError:
            name = f"interface {index}"
        hops.append(_hop(NextHop(socket.inet_ntop(family, gateway) if gateway else "", name)))
    return _with_metric(", ".join(hops) or "blackhole", route.metric)


def _with_metric(text: str, metric: int) -> str:
    return f"{text} metric {metric}" if metric else text


# --- interfaces and settings -------------------------------------------------------------------------


def interface_differences(leases: Iterable[Lease]) -> Iterator[Difference]:
    """Compare the host ends of pods' interfaces: they exist, are up, and have a lease. Raises OSError."""
    known = {lease.interface: lease for lease in leases}
    for name, lease in sorted(known.items()):
        about = lease.owner_text
        up = interface_state(name)
        if up is None:
            yield Difference(LinkRef(name), Problem.MISSING, about)
        elif not up:
            yield Difference(LinkRef(name), Problem.ALTERED, about, "up", "down")
    for _, name in sorted(socket.if_nameindex()):
        if name.startswith(INTERFACE_PREFIX) and name not in known:
            yield Difference(LinkRef(name), Problem.EXTRA, "no lease")


def setting_differences(families: Collection[Family]) -> Iterator[Difference]:
    """Compare the kernel settings that make the node a router."""
    for family in families:
        name, wanted = _SETTINGS[family]
        try:
            found = Path("/proc/sys/net", name).read_text().strip()
        except OSError as error:
            found = error.strerror or str(error)
        if found != wanted:
            yield Difference(SysctlRef(name), Problem.ALTERED, "all pods", wanted, found)
