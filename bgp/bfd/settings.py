"""What the agent and the processes of the sidecar tell each other about BFD: wanted sessions, and their states.

Wanted sessions are comments in ExaBGP's configuration (:mod:`bgp.render`), states are JSON; each is a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bgp.bfd.session import Path, Timers
from bgp.model import Peer
from bgp.prefixes import is_link_local

SOCKET = "bfd.sock"
"""Where the BFD process tells states, in the folder that the sidecar shares with the agent."""

TTL = 255
"""RFC 5881, 5: what a packet of a single hop is sent with and has to arrive with."""

_LINE = "# felix-py bfd "
_WORDS = re.compile(
    rf"^{_LINE}([0-9a-f.:]{{2,45}}) ([0-9a-f.:]{{2,45}}) (\S{{1,15}})"
    r" (\d{1,5}) (\d{1,3}) (single|multi)hop (\d{1,3})$",
    re.ASCII | re.MULTILINE,
)
_NO_INTERFACE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A session to have. ``interval``: milliseconds, wanted in both directions; ``least_ttl`` of its packets.

    ``interface``: only of a link-local ``peer``.
    """

    peer: str
    source: str
    interface: str = ""
    interval: int
    detect_multiplier: int
    multihop: bool
    least_ttl: int

    @property
    def key(self) -> tuple[str, str]:
        """What there is one session for."""
        return self.peer, self.interface

    @property
    def timers(self) -> Timers:
        """The same in the protocol's units."""
        return Timers(self.interval * 1000, self.interval * 1000, self.detect_multiplier)


def lines(peers: Iterable[Peer]) -> str:
    """The wanted sessions of those peers that have BFD; peers at one address share one."""
    found: dict[tuple[str, str], str] = {}
    for peer in peers:
        if peer.bfd is None:
            continue
        hops = "multihop" if peer.bfd.multihop else "singlehop"
        # RFC 5883, 4 leaves it to us; RFC 5082's number of hops is what the BGP session has as well.
        least_ttl = TTL if not peer.bfd.multihop else TTL + 1 - peer.ttl_security if peer.ttl_security else 1
        _, interface = key_of(peer)
        found.setdefault(
            key_of(peer),
            f"{_LINE}{peer.address} {peer.source_address} {interface or _NO_INTERFACE}"
            f" {peer.bfd.interval} {peer.bfd.detect_multiplier} {hops} {least_ttl}\n",
        )
    return "".join(found.values())


def key_of(peer: Peer) -> tuple[str, str]:
    """Of which session the BFD session is: :attr:`Wanted.key`, and of reports ``peer`` and ``interface``."""
    return peer.address, peer.interface if is_link_local(peer.address) else ""


def parse(text: str) -> tuple[Wanted, ...]:
    """The sessions that :func:`lines` noted in a text, whatever else stands in it."""
    return tuple(
        Wanted(
            peer=peer,
            source=source,
            interface="" if interface == _NO_INTERFACE else interface,
            interval=int(interval),
            detect_multiplier=int(multiplier),
            multihop=hops == "multi",
            least_ttl=int(least_ttl),
        )
        for peer, source, interface, interval, multiplier, hops, least_ttl in _WORDS.findall(text)
        if int(interval) and 0 < int(multiplier) < 256
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A session as the agent is told of it. ``age``: seconds since ``path`` changed; intervals in microseconds.

    ``independent``: the peer's BFD does not share fate with its BGP (the C bit; RFC 5882, 4.3).
    """

    peer: str
    interface: str = ""
    path: Path
    age: float
    state: str
    remote_state: str
    diagnostic: int
    remote_diagnostic: int
    independent: bool
    transmit_interval: int
    detection_time: int


_TEXTS = ("peer", "interface", "state", "remote_state")
_NUMBERS = ("diagnostic", "remote_diagnostic", "transmit_interval", "detection_time")
_MOST = 2**40
_TEXT_MOST = 64


def encode(report: Report) -> bytes:
    """A line."""
    fields = {name: getattr(report, name) for name in (*_TEXTS, *_NUMBERS, "age", "independent")}
    return json.dumps({**fields, "path": report.path.value}).encode() + b"\n"


def decode(line: bytes) -> Report | None:
    """The report of a line; None for any other text."""
    try:
        fields = json.loads(line)
        if not _is_valid(fields):
            return None
        given = {name: fields[name] for name in (*_TEXTS, *_NUMBERS, "independent")}
        return Report(**given, path=Path(fields["path"]), age=float(fields["age"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_valid(fields: Mapping[str, object]) -> bool:
    """May raise KeyError or TypeError for what is not."""
    age = fields["age"]
    return (
        all(isinstance(text, str) and len(text) < _TEXT_MOST for text in map(fields.__getitem__, _TEXTS))
        and all(type(number) is int and 0 <= number < _MOST for number in map(fields.__getitem__, _NUMBERS))
        and isinstance(age, (int, float))
        and 0 <= age < _MOST
        and isinstance(fields["independent"], bool)
    )
