"""The agent's side of BGP without any I/O: events of ExaBGP in, commands and best routes out; time is an
argument.

    Control ── what the agent wants, which peers there are, whether all is in sync
      ├─ Session   one peer: state machine, graceful restart, announcements
      ├─ ReadBack  what ExaBGP knew before the agent came
      ├─ Rib       routes and the choice among them
      └─ Channel   commands to ExaBGP, events and log lines from it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from bgp import protocol
from bgp.channel import Channel
from bgp.model import Peer, SpeakerConfig
from bgp.readback import ReadBack
from bgp.rib import Rib
from bgp.session import PeerStatus, Session


class Control:
    """All BGP state of the agent. Methods that take ``now`` want a monotonic clock's seconds."""

    def __init__(self) -> None:
        self.rib = Rib()
        """Learned routes. Filter and reach are set, and changes taken, there."""
        self.channel = Channel()
        """Commands that wait to be sent, and log lines."""
        self._sessions: dict[str, Session] = {}
        self._readback = ReadBack(self._sessions, self.rib, self.channel)
        self._wanted: frozenset[str] | None = None
        self.neighbors: Mapping[str, protocol.Neighbor] = {}
        """ExaBGP's neighbors, as last asked for."""
        self.in_effect = False
        """ExaBGP has exactly the configured neighbors."""
        self.in_sync = False
        """Every peer has told its whole table, or has had time to. Stays true.

        That time begins with the first configuration, and is the longest ``max_restart_time``: routes of before
        this start get as long as those of a session that ends (RFC 4724 4.1, Selection_Deferral_Timer).
        """
        self._unreachable: int | None = None
        self._deferred_until: float | None = None

    # --- what the agent wants ----------------------------------------------------------------------------

    def configure(self, config: SpeakerConfig, peers: Sequence[Peer], now: float) -> None:
        """The peers to have, each with its source address: those of the configuration that this node can reach.

        Routes of all others are forgotten.
        """
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
            if self._wanted is not None:
                session.want(self._wanted)
        if self._deferred_until is None:
            self._deferred_until = now + max((peer.max_restart_time for peer in config.peers), default=0)
        self.in_effect = False
        if new and self.channel.is_open:
            # ExaBGP may have known it before we did.
            self._readback.everything()

    def announce(self, prefixes: Iterable[str]) -> None:
        """All prefixes to announce to every peer of their family; what is missing is withdrawn."""
        self._wanted = frozenset(prefixes)
        for session in self._sessions.values():
            session.want(self._wanted)

    def leaving(self) -> list[str]:
        """Established neighbors of ExaBGP that the configuration no longer has, or has otherwise.

        ExaBGP drops them without a NOTIFICATION, so their peers would keep our routes for the restart time.
        """
        kept = {session.identity for session in self._sessions.values()}
        return [n.peer for n in self.neighbors.values() if n.established and n.identity not in kept]

    def retire(self, peers: Iterable[str]) -> None:
        """Withdraw everything from neighbors that are leaving."""
        self.channel.send(*map(protocol.withdraw_all, peers))

    def query_neighbors(self) -> None:
        """Have :attr:`neighbors` and :attr:`in_effect` brought up to date."""
        self.channel.send(protocol.SHOW_NEIGHBORS)

    # --- the connection ----------------------------------------------------------------------------------

    def attached(self) -> None:
        """There is a new connection to the bridge: read everything back."""
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
        """Bytes from the bridge. What makes no sense is counted and said once a connection; nothing raises."""
        self.channel.receive(data, partial(self._handle, now))

    def tick(self, now: float) -> None:
        """Let time do its part; once a second is enough."""
        for session in self._sessions.values():
            session.tick(now)
            self._confirm(session)
        self._readback.tick(now)
        self.in_sync = self.in_sync or self._is_in_sync(now)

    # --- what came of it ---------------------------------------------------------------------------------

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
            # A reload makes new neighbor objects, and an end-of-RIB still queued in an old one is lost.
            for session in self._sessions.values():
                self.channel.send(*session.out.end_of_rib())
        self.in_effect = in_effect

    def _confirm(self, session: Session) -> None:
        """Until the reading is over, what a peer has not been heard of may yet be found."""
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
