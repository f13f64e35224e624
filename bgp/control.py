"""The agent's side of BGP without I/O: events of ExaBGP in, commands and best routes out; time is an argument.

Control ── wanted announcements, peers, synchronisation
  ├─ Session   one peer: state machine, graceful restart, announcements
  ├─ ReadBack  ExaBGP's state from before the agent attached
  ├─ Rib       routes and the choice among them
  └─ Channel   commands to ExaBGP, events and log lines from it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from bgp import protocol
from bgp.bfd.session import Path
from bgp.bfd.settings import Report, key_of
from bgp.channel import Channel
from bgp.model import Peer, SpeakerConfig
from bgp.readback import ReadBack
from bgp.rib import Rib
from bgp.session import Bfd, PeerStatus, Session

_BFD_MOST = 4096


class Control:
    """All BGP state of the agent. ``now`` is a monotonic clock's seconds."""

    def __init__(self) -> None:
        self.rib = Rib()
        """Learned routes, whose filter and reach callers set, and whose changes they take."""
        self.channel = Channel()
        """Commands to send, and log lines."""
        self._sessions: dict[str, Session] = {}
        self._readback = ReadBack(self._sessions, self.rib, self.channel)
        self._wanted: frozenset[str] | None = None
        self.neighbors: Mapping[str, protocol.Neighbor] = {}
        """ExaBGP's neighbors by the last query."""
        self.in_effect = False
        """Whether ExaBGP has exactly the configured neighbors."""
        self.in_sync = False
        """Whether every peer has sent its whole table, or has had time to. Stays true.

        That time begins with the first configuration and is the longest ``max_restart_time``: routes from before
        this start are kept as long as those of an ended session (RFC 4724 4.1, Selection_Deferral_Timer).
        """
        self._unreachable: int | None = None
        self._deferred_until: float | None = None
        self._bfd: dict[tuple[str, str], Bfd] = {}

    # --- what the agent wants ----------------------------------------------------------------------------

    def configure(self, config: SpeakerConfig, peers: Sequence[Peer], now: float) -> None:
        """Set the peers that this node can reach, each with its source address; routes of others are dropped."""
        self._unreachable = len(config.peers) - len(peers)
        self.rib.set_max_paths(config.max_paths)
        wanted = {peer.address: peer for peer in peers}
        for address in self._sessions.keys() - wanted.keys():
            del self._sessions[address]
            self.rib.drop(address)
        new = wanted.keys() - self._sessions.keys()
        for address, peer in wanted.items():
            if address not in new:
                self._sessions[address].configure(peer)
                continue
            session = self._sessions[address] = Session(peer, self.rib, self.channel, now)
            session.tell_bfd(self._bfd.get(key_of(peer)), now)
            if self._wanted is not None:
                session.want(self._wanted)
        if self._deferred_until is None:
            self._deferred_until = now + max((peer.max_restart_time for peer in config.peers), default=0)
        self.in_effect = False
        if new and self.channel.is_open:
            # ExaBGP may have had the new peer before.
            self._readback.everything()

    def announce(self, prefixes: Iterable[str]) -> None:
        """Set all prefixes to announce to every peer of their family; others are withdrawn."""
        self._wanted = frozenset(prefixes)
        for session in self._sessions.values():
            session.want(self._wanted)

    def leaving(self) -> list[str]:
        """Established neighbors of ExaBGP that the configuration has no longer, or with other settings.

        ExaBGP drops them without a NOTIFICATION, so their peers would keep our routes for the restart time.
        """
        kept = {session.identity for session in self._sessions.values()}
        return [n.peer for n in self.neighbors.values() if n.established and n.identity not in kept]

    def retire(self, peers: Iterable[str]) -> None:
        """Withdraw everything from neighbors that are leaving."""
        self.channel.send(*map(protocol.withdraw_all, peers))

    def query_neighbors(self) -> None:
        """Request an update of :attr:`neighbors` and :attr:`in_effect`."""
        self.channel.send(protocol.SHOW_NEIGHBORS)

    # --- the connection ----------------------------------------------------------------------------------

    def attached(self) -> None:
        """A new connection to the bridge is open: read everything back."""
        self.channel.open()
        self._readback.stop()
        self._readback.everything()

    def detached(self, now: float) -> None:
        """The connection is gone, and perhaps ExaBGP with it: keep all routes as a restarting speaker does."""
        self.channel.close()
        self._readback.stop()
        self.neighbors = {}
        for session in self._sessions.values():
            session.detached(now)

    def receive(self, data: bytes, now: float) -> None:
        """Handle bytes from the bridge. Invalid ones are counted and noted once a connection; nothing raises."""
        self.channel.receive(data, partial(self._handle, now))

    def bfd(self, report: Report, now: float) -> None:
        """Handle what the sidecar says of a BFD session."""
        key = report.peer, report.interface
        if key not in self._bfd and len(self._bfd) >= _BFD_MOST:
            return
        failed_at = now - report.age if report.path is Path.FAILED else None
        self._bfd[key] = Bfd(report.state, failed_at, report.independent)
        for session in self._sessions.values():
            if key_of(session.peer) == key:
                session.tell_bfd(self._bfd[key], now)

    def bfd_unknown(self, now: float) -> None:
        """Nothing is known of BFD any more: sessions stay as they are."""
        self._bfd.clear()
        for session in self._sessions.values():
            session.tell_bfd(None, now)

    def tick(self, now: float) -> None:
        """Handle timers; once a second is enough."""
        for session in self._sessions.values():
            session.tick(now)
            self._confirm(session)
        self._readback.tick(now)
        self.in_sync = self.in_sync or self._is_in_sync(now)

    # --- results -----------------------------------------------------------------------------------------

    def peers(self, now: float) -> list[PeerStatus]:
        """One status for each configured peer."""
        return [session.status(now) for session in self._sessions.values()]

    # --- events ------------------------------------------------------------------------------------------

    def _handle(self, now: float, event: protocol.Event) -> None:
        match event:
            case protocol.Neighbors():
                self._on_neighbors(event, now)
            case protocol.RibEntry():
                self._readback.entry(event)
            case protocol.Answered():
                self._readback.answered(event, self.neighbors, now)
            case _:
                if session := self._sessions.get(event.peer):
                    self._on_session(session, event, now)

    def _on_session(self, session: Session, event: protocol.Event, now: float) -> None:
        match event:
            case protocol.Gap():
                self.channel.note("events lost, reading back", event.peer, warning=True)
                self.channel.send(protocol.SHOW_NEIGHBORS)
                self._readback.received([event.peer])
            case protocol.Update():
                self._readback.updated(event)
            case protocol.Up():
                self._readback.changed(event.peer)
            case protocol.Down() if session.established:
                self._readback.changed(event.peer)
        session.receive(event, now)
        self._confirm(session)

    def _on_neighbors(self, event: protocol.Neighbors, now: float) -> None:
        self.neighbors = {neighbor.peer: neighbor for neighbor in event.neighbors}
        for address, session in self._sessions.items():
            neighbor = self.neighbors.get(address)
            established = neighbor is not None and neighbor.established
            if established == session.established:
                continue
            if neighbor and established and self._readback.attaching:
                session.take_over(neighbor, now)
                continue
            self._readback.changed(address)
            if established:
                session.up(now)
            else:
                session.down("ExaBGP has no session", now)
        kept = {session.identity for session in self._sessions.values()}
        in_effect = {neighbor.identity for neighbor in event.neighbors} == kept
        if in_effect and not self.in_effect:
            # A reload creates new neighbor objects, and loses an end-of-RIB still queued in an old one.
            for session in self._sessions.values():
                self.channel.send(*session.out.end_of_rib())
        self.in_effect = in_effect

    def _confirm(self, session: Session) -> None:
        """Confirm a session's routes, but not while reading back may still find them."""
        if not self._readback.reading:
            session.confirm()

    def _is_in_sync(self, now: float) -> bool:
        if self._deferred_until is not None and now >= self._deferred_until:
            return True
        if self._unreachable != 0 or self._readback.attaching or self._readback.reading:
            return False
        if self._sessions and not self.in_effect:
            return False
        return all(session.told for session in self._sessions.values())
