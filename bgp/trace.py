"""What happens in BGP, one after the other, for people who look on: :class:`bgp.channel.Channel` tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from bgp import events
from bgp.decision import Path

_TOLD = re.compile(r"neighbor (\S+) (announce|withdraw) attributes (.*) nlri (.*)", re.ASCII)
_COMMAND = re.compile(r"neighbor (\S+) (.*)", re.ASCII)
_ORIGINS = ("IGP", "EGP", "INCOMPLETE")


class Kind(StrEnum):
    """What an event is about."""

    SESSION = "session"
    """A session, or an attempt at one."""
    UPDATE = "update"
    """A peer announces a prefix."""
    WITHDRAW = "withdraw"
    """A peer withdraws a prefix."""
    BEST = "best"
    """The best route of a prefix is another, or there is none any more."""
    ANNOUNCE = "announce"
    """We announce a prefix, or withdraw it."""


class Traced(NamedTuple):
    """``peer``: its address, empty for a best route. ``prefix``: empty for a session. ``detail``: for people."""

    kind: Kind
    peer: str
    prefix: str
    detail: str


def of_event(event: events.Event) -> Iterator[Traced]:
    """What a peer has said. That a session is up or down is told by a note."""
    match event:
        case events.Update():
            yield from (Traced(Kind.UPDATE, event.peer, prefix, _path(path)) for prefix, path in event.announced)
            yield from (Traced(Kind.WITHDRAW, event.peer, prefix, "") for prefix, _ in event.withdrawn)
        case events.Open():
            families = ", ".join(f"IPv{family}" for family in sorted(event.families))
            restart = f", graceful restart {event.restart.time} s" if event.restart else ""
            yield Traced(Kind.SESSION, event.peer, "", f"OPEN: router ID {event.router_id}, {families}{restart}")
        case events.EndOfRib():
            yield Traced(Kind.SESSION, event.peer, "", f"end of its IPv{event.family} table")
        case events.Refresh():
            which = "begins" if event.begin else "ends"
            yield Traced(Kind.SESSION, event.peer, "", f"{which} to repeat its IPv{event.family} table")
        case events.Gap():
            yield Traced(Kind.SESSION, event.peer, "", "events were lost; its table is read again")


def of_command(command: str) -> Iterator[Traced]:
    """What we have ExaBGP say."""
    if told := _TOLD.fullmatch(command):
        peer, verb, attributes, prefixes = told.groups()
        detail = attributes if verb == "announce" else "withdrawn"
        yield from (Traced(Kind.ANNOUNCE, peer, prefix, detail) for prefix in prefixes.split())
    elif said := _COMMAND.fullmatch(command):
        yield Traced(Kind.SESSION, said[1], "", f"told: {said[2]}")


def of_best(prefix: str, next_hops: Sequence[str]) -> Traced:
    """A new best route; without next hops: none."""
    return Traced(Kind.BEST, "", prefix, f"by {', '.join(next_hops)}" if next_hops else "not routed any more")


def _path(path: Path) -> str:
    return ", ".join(_words(path))


def _words(path: Path) -> Iterable[str]:
    yield f"next hop {path.next_hop}"
    yield f"AS path {' '.join(map(str, path.as_path)) or 'empty'}"
    yield f"origin {_ORIGINS[path.origin]}"
    yield f"local preference {path.local_pref}, MED {path.med}"
    if communities := (*path.communities, *path.large_communities):
        yield f"communities {' '.join(communities)}"
