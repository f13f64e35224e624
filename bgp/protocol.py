"""The protocol of ExaBGP 5.0 with its helper, without I/O: lines to :mod:`bgp.events`, commands to lines.

Two kinds of lines arrive, interleaved: JSON events, and for each command its output and then one ``done`` or
``error``, in order. ``done`` means that ExaBGP has accepted a command, not that a peer has received it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from bgp import decoding
from bgp.announcement import Announcement
from bgp.attributes import number, words
from bgp.bridge import Lines
from bgp.command_queue import CommandQueue
from bgp.events import Answered, Event, Gap, Neighbor, Neighbors

SHOW_NEIGHBORS = "show neighbor json"
SHOW_RIB_IN = "show adj-rib in json"
SHOW_RIB_OUT = "show adj-rib out json"
NOTHING = "# nothing"
"""A comment, which is answered like a command."""

_LINE_MOST = 16 * 1024 * 1024
"""Bytes. The longest valid line, that of all neighbors, has up to 1.5 KB for each."""

_PREFIXES_PER_LINE = 45
_IN_FLIGHT = 4
# ExaBGP processes 50 prefixes in a turn of its loop and then sleeps up to 10 ms, unless a new command wakes it.
# So short lines, one after the other, are announced twice as fast as long ones all at once.


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
        self.answered = 0
        """Number of commands that were answered."""
        self._lines = Lines(_LINE_MOST)
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
        before = self._lines.too_long
        lines = self._lines.take(data)
        self.ignored += self._lines.too_long - before
        for line in lines:
            yield from self._line(line)

    def _line(self, line: bytes) -> Iterator[Event]:
        if line in (b"done", b"error"):
            if self._commands:
                self.answered += 1
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
            return [decoding.rib_entry(content, outgoing=outgoing)]
        return list(self._event(content)) if "neighbor" in content else []

    def _neighbors(self, content: list[Any]) -> Iterator[Neighbor]:
        for entry in content:
            try:
                neighbor = decoding.neighbor(entry)
            except Exception:
                self.ignored += 1  # the others are still valid
            else:
                yield neighbor

    def _event(self, content: dict[str, Any]) -> Iterator[Event]:
        neighbor = content["neighbor"]
        peer = decoding.name_of(neighbor["address"]["peer"])
        kind, counter = content["type"], number(content["counter"], decoding.U64)
        expected = self._counters.get(peer, counter - 1) + 1
        self._counters[peer] = counter
        if kind == "open":
            # The bridge may repeat an OPEN, so its counter does not predict the next one.
            del self._counters[peer]
        elif counter not in (expected, 1):  # a reload starts counting anew
            yield Gap(peer)
        if decode := decoding.EVENTS.get(kind):
            yield from decode(peer, neighbor)
