"""The protocol of ExaBGP 5.0 with its helper, without I/O: lines to events, commands to lines.

``peer`` is a session's name everywhere (:attr:`bgp.model.Peer.key`), as :mod:`bgp.launch` has ExaBGP say it.

Two kinds of lines arrive, interleaved: JSON events, and for each command its output and then one ``done`` or
``error``, in order. ``done`` means that ExaBGP has accepted a command, not that a peer has received it.
"""

from __future__ import annotations

import ipaddress
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from bgp.announcement import Announcement
from bgp.attributes import Malformed, number, received, sent, words
from bgp.command_queue import CommandQueue
from bgp.decision import Path
from bgp.fields import named_address, peer_address, peer_name
from bgp.prefixes import FAMILIES, canonical, is_link_local, version

SHOW_NEIGHBORS = "show neighbor json"
SHOW_RIB_IN = "show adj-rib in json"
SHOW_RIB_OUT = "show adj-rib out json"

_LINE_MOST = 4 * 1024 * 1024
"""Bytes. The longest valid line, that of all neighbors, has some 3 KB for each."""

TEXT_MOST = 200
_U32, _U64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_PREFIXES_PER_LINE = 45
_IN_FLIGHT = 4
# ExaBGP processes 50 prefixes in a turn of its loop and then sleeps up to 10 ms, unless a new command wakes it.
# So short lines, one after the other, are announced twice as fast as long ones all at once.


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """A peer's graceful restart capability (RFC 4724 3): seconds, and IP version -> forwarding state kept."""

    time: int
    forwarding: Mapping[int, bool]


@dataclass(frozen=True, slots=True)
class Open:
    """The peer's OPEN. ``restart`` None: no graceful restart. ``families``: its IP versions (RFC 4760)."""

    peer: str
    router_id: str
    restart: GracefulRestart | None
    families: frozenset[int] = frozenset({4})


@dataclass(frozen=True, slots=True)
class Up:
    """The session is Established."""

    peer: str


@dataclass(frozen=True, slots=True)
class Down:
    """The session ended, or an attempt at one failed: ExaBGP reports both in the same way."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notified:
    """A NOTIFICATION from the peer."""

    peer: str
    code: int
    subcode: int
    text: str


class Nlri(NamedTuple):
    """What is announced and withdrawn: a canonical prefix, and of several paths to it the one (RFC 7911)."""

    prefix: str
    path_id: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """Validated routes of one UPDATE: canonical prefixes."""

    peer: str
    announced: tuple[tuple[str, Path], ...]
    withdrawn: tuple[Nlri, ...]


@dataclass(frozen=True, slots=True)
class MalformedUpdate:
    """An UPDATE whose routes count as withdrawn, or that lost an attribute (RFC 7606); ``what`` is ExaBGP's."""

    peer: str
    what: str


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """The peer has sent its whole table of a family (RFC 4724 2)."""

    peer: str
    family: int


@dataclass(frozen=True, slots=True)
class Refresh:
    """Begin or end of an enhanced route refresh of a family by the peer (RFC 7313)."""

    peer: str
    family: int
    begin: bool


@dataclass(frozen=True, slots=True)
class Gap:
    """Events of this peer were lost: its state must be read anew."""

    peer: str


Identity = tuple[str, str, int, int]
"""Peer's name, local address, peer's and local AS: a change of any makes another session."""


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A neighbor of ExaBGP. ``age``: seconds since Established. ``route_refresh``: the peer supports RFC 2918.

    ``families``: negotiated IP versions.
    """

    peer: str
    local_address: str
    asn: int
    local_asn: int
    router_id: str
    established: bool
    age: int
    updates_sent: int
    route_refresh: bool
    families: frozenset[int]

    @property
    def identity(self) -> Identity:
        """Identifies the session."""
        return self.peer, self.local_address, self.asn, self.local_asn


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Output of SHOW_NEIGHBORS."""

    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True, slots=True)
class RibEntry:
    """One output line of SHOW_RIB_IN, with a ``path``, or of SHOW_RIB_OUT, with an ``announcement``.

    None of both: it has no usable next hop, or an attribute that cannot be used. ``path_id``: see :class:`Nlri`.
    """

    peer: str
    prefix: str
    path: Path | None
    outgoing: bool
    announcement: Announcement | None = None
    path_id: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """A command was done or refused."""

    command: str
    ok: bool


Event = (
    Open
    | Up
    | Down
    | Notified
    | Update
    | MalformedUpdate
    | EndOfRib
    | Refresh
    | Gap
    | Neighbors
    | RibEntry
    | Answered
)


def announce(peer: str, announcements: Iterable[Announcement], own_asn: int = 0) -> Iterator[str]:
    """Commands that announce, prefixes of equal attributes together. ``own_asn``: of the session if it is eBGP.

    The next hop ``self`` is for prefixes of the session's family: for IPv4 on an IPv6 session ExaBGP would use
    the router id.
    """
    return _batches(f"neighbor {peer} announce", announcements, own_asn)


def withdraw(peer: str, announcements: Iterable[Announcement], own_asn: int = 0) -> Iterator[str]:
    """Commands that withdraw what was announced last.

    ExaBGP keeps what is to be sent by attributes, and sends it in the order in which these came first. With those
    of the announcement, a withdrawal takes its place there, and cannot be overtaken.
    """
    return _batches(f"neighbor {peer} withdraw", announcements, own_asn)


def end_of_rib(peer: str, family: int) -> str:
    """Send end-of-RIB of a family to the peer."""
    return f"neighbor {peer} announce eor ipv{family} unicast"


def route_refresh(peer: str, family: int) -> str:
    """Ask the peer for all its routes of a family."""
    return f"neighbor {peer} announce route-refresh ipv{family} unicast"


def withdraw_all(peer: str) -> str:
    """Withdraw all that ExaBGP has announced to the peer."""
    return f"neighbor {peer} clear adj-rib out"


def teardown(peer: str, subcode: int) -> str:
    """End the session with a NOTIFICATION Cease (RFC 4486); ExaBGP connects again."""
    return f"neighbor {peer} teardown {subcode}"


def _batches(start: str, announcements: Iterable[Announcement], own_asn: int) -> Iterator[str]:
    together: dict[str, list[str]] = {}
    for announcement in announcements:
        together.setdefault(words(announcement, own_asn), []).append(announcement.prefix)
    for attributes, prefixes in sorted(together.items()):
        prefixes.sort()
        for first in range(0, len(prefixes), _PREFIXES_PER_LINE):
            yield f"{start} attributes {attributes} nlri {' '.join(prefixes[first : first + _PREFIXES_PER_LINE])}"


class Connection:
    """One connection to the bridge: bytes in, events out; commands in, bytes out. Nothing raises on bad input."""

    def __init__(self) -> None:
        self.ignored = 0
        """Number of invalid lines."""
        self._partial = b""
        self._too_long = False
        self._waiting = CommandQueue()
        self._commands: deque[str] = deque()
        self._counters: dict[str, int] = {}

    @property
    def pending(self) -> int:
        """Commands without an answer."""
        return len(self._waiting) + len(self._commands)

    def command(self, line: str) -> None:
        """Queue one command."""
        if not line.isascii() or "\n" in line:
            raise ValueError(f"not one line of ASCII: {line!r}")
        self._waiting.add(line)

    def data_to_send(self) -> bytes:
        """Bytes to write to the socket now; call again after each :meth:`receive`."""
        ready = []
        while self._waiting and len(self._commands) < _IN_FLIGHT:
            self._commands.append(self._waiting.take())
            ready.append(self._commands[-1] + "\n")
        return "".join(ready).encode()

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yields the events of all lines that are now complete."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if lines and self._too_long:
            del lines[0]  # the end of it
            self._too_long = False
        if len(self._partial) > _LINE_MOST or self._too_long:
            self.ignored += not self._too_long
            self._partial, self._too_long = b"", True
        for line in lines:
            yield from self._line(line)

    def _line(self, line: bytes) -> Iterator[Event]:
        if line in (b"done", b"error"):
            if self._commands:
                yield Answered(self._commands.popleft(), ok=line == b"done")
            else:
                self.ignored += 1
            return
        try:
            # Decoded completely before the first event is yielded: a consumer's exceptions must not count here.
            found = self._decode(line)
        except Exception:
            # One bad line (the JSON decoder alone has a dozen exceptions) does not spoil the rest of the stream.
            self.ignored += 1
            return
        yield from found

    def _decode(self, line: bytes) -> list[Event]:
        if len(line) > _LINE_MOST:
            raise ValueError("too long")
        content = json.loads(line)
        if isinstance(content, list):
            return [Neighbors(tuple(self._neighbors(content)))]
        if "route" in content:
            outgoing = bool(self._commands) and self._commands[0] == SHOW_RIB_OUT
            return [_rib_entry(content, outgoing=outgoing)]
        return list(self._event(content)) if "neighbor" in content else []

    def _neighbors(self, content: list[Any]) -> Iterator[Neighbor]:
        for entry in content:
            try:
                neighbor = _neighbor(entry)
            except Exception:
                self.ignored += 1  # the others are still valid
            else:
                yield neighbor

    def _event(self, content: dict[str, Any]) -> Iterator[Event]:
        neighbor = content["neighbor"]
        peer = _peer(neighbor["address"]["peer"])
        kind, counter = content["type"], number(content["counter"], _U64)
        expected = self._counters.get(peer, counter - 1) + 1
        self._counters[peer] = counter
        if kind == "open":
            # The bridge may repeat an OPEN, so its counter does not predict the next one.
            del self._counters[peer]
        elif counter not in (expected, 1):  # a reload starts counting anew
            yield Gap(peer)
        if event := _EVENTS.get(kind):
            yield from event(peer, neighbor)


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
    yield Open(peer, _address(content["router_id"]), restart, _families(families))


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


_EVENTS = {"state": _state, "open": _open, "update": _update, "refresh": _refresh, "notification": _notification}


def _neighbor(entry: dict[str, Any]) -> Neighbor:
    established = entry["fsm"] == "ESTABLISHED"
    return Neighbor(
        peer=_peer(entry["peer"]["address"]),
        local_address=_text(entry["local"]["address"]),
        asn=number(entry["peer"]["as"], _U32),
        local_asn=number(entry["local"]["as"], _U32),
        router_id=_address(entry["peer"]["id"]) if established else "0.0.0.0",
        established=established,
        age=number(entry["duration"], _U32) if established and entry["state"] == "up" else 0,
        updates_sent=number(entry["messages"]["sent"]["update"], _U64),
        route_refresh=bool(entry["peer"]["capabilities"]["route-refresh"]),
        families=_families(entry["families"]),
    )


def _families(names: Iterable[str]) -> frozenset[int]:
    """The IP versions among families as ExaBGP names them: ``ipv4 unicast``, in an OPEN ``ipv4/unicast``."""
    known = {f"ipv{family} unicast": family for family in FAMILIES}
    return frozenset(known[name] for each in names if (name := each.replace("/", " ")) in known)


def _rib_entry(content: dict[str, Any], *, outgoing: bool) -> RibEntry:
    peer = _peer(content["peer"]["address"])
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
def _peer(text: object) -> str:
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
