"""What the agent knows of one BGP session, and what it tells people of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from bgp import protocol
from bgp.model import Peer
from bgp.outgoing import Outgoing


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a log line. ``warning``: somebody should look at it."""

    text: str
    peer: str = ""
    detail: str = ""
    warning: bool = False


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer, for people. ``since``: seconds in that state; ``error``: why it went or stays down."""

    address: str
    asn: int
    established: bool
    since: float
    received: int
    families: tuple[str, ...]
    error: str = ""


@dataclass(slots=True)
class Session:
    peer: Peer
    out: Outgoing
    since: float
    established: bool = False
    router_id: str = "0.0.0.0"
    restart: protocol.GracefulRestart | None = None
    own_restart: bool = False
    complete: bool = False
    complete_at: float = 0.0
    stale_until: float = 0.0
    refreshing: bool = False
    nameless: set[str] = field(default_factory=set)
    nameless_until: float = 0.0
    error: str = ""

    @property
    def told(self) -> bool:
        """The peer has told its whole table, and we have understood all of it."""
        return self.established and self.complete and not self.nameless


@dataclass(slots=True)
class Reading:
    """SHOW_RIB_IN is under way. What live events touched meanwhile is newer than its lines."""

    touched: set[tuple[str, str]] = field(default_factory=set)
    peers: set[str] = field(default_factory=set)
    nameless: dict[str, set[str]] = field(default_factory=dict)
    again: bool = False
