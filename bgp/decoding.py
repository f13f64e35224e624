"""ExaBGP's JSON -> :mod:`bgp.events`, as ExaBGP 5.0 writes it. Pure.

The functions raise anything for what it never writes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from bgp.announcement import Announcement
from bgp.attributes import Malformed, number, received, sent
from bgp.decision import Path
from bgp.events import (
    Down,
    EndOfRib,
    Event,
    GracefulRestart,
    MalformedUpdate,
    Neighbor,
    Nlri,
    Notified,
    Open,
    Refresh,
    RibEntry,
    Up,
    Update,
)
from bgp.fields import named_address, peer_address, peer_name
from bgp.prefixes import FAMILIES, canonical, is_link_local, version

TEXT_MOST = 200
"""Characters of a text for people."""

U64 = 0xFFFFFFFFFFFFFFFF
_U32 = 0xFFFFFFFF


def _state(peer: str, neighbor: dict[str, Any]) -> Iterator[Event]:
    if neighbor["state"] == "up":
        yield Up(peer)
    elif neighbor["state"] == "down":
        yield Down(peer, _text(neighbor.get("reason", "")))


def _open(peer: str, neighbor: dict[str, Any]) -> Iterator[Event]:
    if neighbor.get("direction") != "receive":
        return
    content = neighbor["open"]
    # 64: RFC 4724. ExaBGP calls the forwarding flag of a family "restart" and the restart flag "forwarding".
    restart = None
    if capability := content["capabilities"].get("64"):
        flags = capability["address-family-flags"]
        restart = GracefulRestart(
            number(capability["time"], 4095),
            {v: "restart" in flags[name] for v in FAMILIES if (name := f"ipv{v}/unicast") in flags},
        )
    # 1: RFC 4760; who does not have it speaks IPv4.
    families = content["capabilities"].get("1", {"families": ["ipv4/unicast"]})["families"]
    # 5: RFC 8950, each a family of prefixes and one of next hops.
    extended = "ipv4/unicast/ipv6" in content["capabilities"].get("5", {"conversion": ()})["conversion"]
    yield Open(peer, _address(content["router_id"]), restart, _families(families), extended)


def _update(peer: str, neighbor: dict[str, Any]) -> Iterator[Event]:
    message = neighbor["message"]
    if "eor" in message:
        for family in _families([f"{message['eor']['afi']} {message['eor']['safi']}"]):
            yield EndOfRib(peer, family)
        return
    update = message["update"]
    attributes = update.get("attribute", {})
    if error := attributes.get("error"):
        yield MalformedUpdate(peer, _text(error))
    announced: dict[Nlri, Path] = {}
    unusable: set[Nlri] = set()
    withdrawn: set[Nlri] = set()
    for family in FAMILIES:
        name = f"ipv{family} unicast"
        # A route with a global and a link-local next hop (RFC 2545) is listed under each; the link-local one is
        # the one to use on a session between link-local addresses.
        for next_hop, entries in sorted(update.get("announce", {}).get(name, {}).items(), key=_link_local_last):
            nlris = [_nlri(entry) for entry in entries]
            if route := _usable_path(_next_hop(next_hop, family, peer), attributes):
                announced |= {nlri: _numbered(route, nlri.path_id) for nlri in nlris}
            else:
                unusable.update(nlris)
        withdrawn.update(_nlri(entry) for entry in update.get("withdraw", {}).get(name, ()))
    # An announcement replaces the previous one even if it is unusable itself (RFC 4271 9).
    withdrawn |= unusable - announced.keys()
    if announced or withdrawn:
        routes = tuple((nlri.prefix, path) for nlri, path in announced.items())
        yield Update(peer, routes, tuple(withdrawn))


def _nlri(entry: dict[str, Any]) -> Nlri:
    return Nlri(_prefix(entry["nlri"]), _path_id(entry))


def _path_id(entry: dict[str, Any]) -> str:
    """A path identifier (RFC 7911): 32 bits, which ExaBGP writes like an IPv4 address. Empty: there is none."""
    return str(ipaddress.IPv4Address(found)) if (found := entry.get("path-information", "")) else ""


def _numbered(path: Path, path_id: str) -> Path:
    return replace(path, path_id=path_id) if path_id else path


def _refresh(peer: str, neighbor: dict[str, Any]) -> Iterator[Event]:
    refresh = neighbor["route-refresh"]
    for family in _families([f"{refresh['afi']} {refresh['safi']}"]):
        if refresh["subtype"] in ("begin", "end"):
            yield Refresh(peer, family, begin=refresh["subtype"] == "begin")


def _notification(peer: str, neighbor: dict[str, Any]) -> Iterator[Event]:
    content = neighbor["notification"]
    code, subcode = number(content["code"], 255), number(content["subcode"], 255)
    yield Notified(peer, code, subcode, _text(content.get("message", "")))


EVENTS: Mapping[str, Callable[[str, dict[str, Any]], Iterator[Event]]] = {
    "state": _state,
    "open": _open,
    "update": _update,
    "refresh": _refresh,
    "notification": _notification,
}
"""By the type of a line: of a session's name, and what is said of it, to events."""


def neighbor(entry: dict[str, Any]) -> Neighbor:
    """One of the list that `show neighbor json` gives."""
    established = entry["fsm"] == "ESTABLISHED"
    return Neighbor(
        peer=name_of(entry["peer"]["address"]),
        local_address=_text(entry["local"]["address"]),
        asn=number(entry["peer"]["as"], _U32),
        local_asn=number(entry["local"]["as"], _U32),
        router_id=_address(entry["peer"]["id"]) if established else "0.0.0.0",
        established=established,
        age=number(entry["duration"], _U32) if established and entry["state"] == "up" else 0,
        updates_sent=number(entry["messages"]["sent"]["update"], U64),
        route_refresh=bool(entry["peer"]["capabilities"]["route-refresh"]),
        families=_families(entry["families"]),
        extended_next_hop=bool(entry["peer"]["capabilities"].get("nexthop")),
    )


def _families(names: Iterable[str]) -> frozenset[int]:
    """The IP versions among families as ExaBGP names them: ``ipv4 unicast``, in an OPEN ``ipv4/unicast``."""
    known = {f"ipv{family} unicast": family for family in FAMILIES}
    return frozenset(known[name] for each in names if (name := each.replace("/", " ")) in known)


def rib_entry(content: dict[str, Any], *, outgoing: bool) -> RibEntry:
    """A line of `show adj-rib in json` or, ``outgoing``, of `show adj-rib out json`."""
    peer = name_of(content["peer"]["address"])
    nlri, attributes = content["route"]["nlri"], content["route"]["attributes"]
    prefix, next_hop = _prefix(nlri["prefix"]), str(nlri["nexthop"])
    if outgoing:
        return RibEntry(peer, prefix, None, True, _announcement(prefix, next_hop, attributes))
    path, path_id = _usable_path(_next_hop(next_hop, version(prefix), peer), attributes), _path_id(nlri)
    return RibEntry(peer, prefix, _numbered(path, path_id) if path else None, False, path_id=path_id)


def _usable_path(next_hop: str, attributes: dict[str, Any]) -> Path | None:
    try:
        return received(next_hop, attributes) if next_hop else None
    except Malformed:
        return None


def _announcement(prefix: str, next_hop: str, attributes: dict[str, Any]) -> Announcement | None:
    try:
        return sent(prefix, next_hop, attributes)
    except Malformed:
        return None


def _next_hop(text: str, family: int, peer: str) -> str:
    """A next hop that can be used for a family, or an empty text.

    A link-local one belongs to an interface, which only a link-local peer's is known of. IPv4 prefixes may have
    IPv6 next hops (RFC 8950).
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if address.version < family or address.is_multicast or address.is_unspecified or address.is_loopback:
        return ""
    if address.is_link_local and (address.version == 4 or not is_link_local(named_address(peer))):
        return ""
    return str(address)


def _link_local_last(listed: tuple[str, object]) -> bool:
    return is_link_local(listed[0])


@lru_cache(maxsize=4096)
def name_of(text: object) -> str:
    """The name of a session, canonical."""
    return peer_name(*peer_address("peer", text))


def _address(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError("not an address")
    return str(ipaddress.ip_address(text))


def _prefix(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError("not a prefix")
    return canonical(text)


def _text(value: object) -> str:
    """A text for people: bounded, of one line, safe for every terminal and encoder."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return "".join(c if c.isprintable() else "?" for c in value[:TEXT_MOST])
