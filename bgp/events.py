"""What ExaBGP has told, as records: :mod:`bgp.decoding` makes them of its lines.

``peer`` is a session's name everywhere (:attr:`bgp.model.Peer.key`), as :mod:`bgp.launch` has ExaBGP say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bgp.announcement import Announcement
from bgp.decision import Path


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """A peer's graceful restart capability (RFC 4724 3): seconds, and IP version -> forwarding state kept."""

    time: int
    forwarding: Mapping[int, bool]


@dataclass(frozen=True, slots=True)
class Open:
    """The peer's OPEN. ``restart`` None: no graceful restart. ``families``: its IP versions (RFC 4760).

    ``extended_next_hop``: it takes IPv6 next hops of IPv4 prefixes (RFC 8950, 4).
    """

    peer: str
    router_id: str
    restart: GracefulRestart | None
    families: frozenset[int] = frozenset({4})
    extended_next_hop: bool = False


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
    """An UPDATE whose routes count as withdrawn, for its attributes (RFC 7606); ``what`` is what ExaBGP says."""

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

    ``families``: negotiated IP versions. ``extended_next_hop``: RFC 8950 is agreed on.
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
    extended_next_hop: bool

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
