"""The agent's side of BGP without any I/O: events of ExaBGP in, commands and best routes out; time is an
argument.

What ExaBGP does not tell after the fact is read back whenever the agent attaches: neighbors, what it announces,
what it has received. Nothing is withdrawn or forgotten in between, so peers and the kernel see no flap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bgp import protocol
from bgp.model import Peer, SpeakerConfig
from bgp.outgoing import Outgoing
from bgp.prefixes import version
from bgp.protocol import Connection
from bgp.rib import ImportFilter, NextHops, Reach, Rib, Source, Unresolved
from bgp.session import Note, PeerStatus, Reading, Session

SETTLE = 10.0
"""Seconds after which the table of a peer that never says end-of-RIB counts as complete."""


class Control:
    """All BGP state of the agent. Methods that take ``now`` want a monotonic clock's seconds."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._rib = Rib()
        self._wanted: frozenset[str] | None = None
        self._connection: Connection | None = None
        self._neighbors: dict[str, protocol.Neighbor] = {}
        self._reading: Reading | None = None
        self._attaching = False
        self._read_out_at = 0.0
        self._in_effect = False
        self._unreachable: int | None = None
        self._deferred_until: float | None = None
        self._in_sync = False
        self._notes: list[Note] = []
        self._ignored = 0

    # --- what the agent wants ----------------------------------------------------------------------------

    def configure(self, config: SpeakerConfig, peers: Sequence[Peer], now: float) -> None:
        """The peers to have, each with its source address: those of the configuration that this node can reach.

        Routes of all others are forgotten.
        """
        self._unreachable = len(config.peers) - len(peers)
        self._rib.set_max_paths(config.max_paths)
        wanted = {peer.address: peer for peer in peers}
        new = False
        for address in self._sessions.keys() - wanted.keys():
            del self._sessions[address]
            self._rib.drop(address)
        for address, peer in wanted.items():
            session = self._sessions.get(address)
            if session is None:
                session = self._sessions[address] = Session(peer, Outgoing(address), since=now)
                if self._wanted is not None:
                    session.out.want(self._of_family(peer))
                new = True
            session.peer = peer
            self._describe(session)
        if self._deferred_until is None:
            self._deferred_until = now + max((peer.max_restart_time for peer in config.peers), default=0)
        self._in_effect = False
        if new and self._connection:
            # ExaBGP may have known it before we did.
            self._read_back()

    def announce(self, prefixes: Iterable[str]) -> None:
        """All prefixes to announce to every peer of their family; what is missing is withdrawn."""
        self._wanted = frozenset(prefixes)
        for session in self._sessions.values():
            self._send(session.out.want(self._of_family(session.peer)))

    def set_filter(self, new: ImportFilter) -> None:
        """Which prefixes may be learned; decides again at once."""
        self._rib.set_filter(new)

    def set_reach(self, reach: Reach) -> None:
        """Which next hops this node can use, from now on; decides again what rests on others."""
        self._rib.set_reach(reach)

    def leaving(self) -> list[str]:
        """Established neighbors of ExaBGP that the configuration no longer has, or has otherwise.

        ExaBGP drops them without a NOTIFICATION, so their peers would keep our routes for the restart time.
        """
        kept = {_identity(session.peer) for session in self._sessions.values()}
        return [n.peer for n in self._neighbors.values() if n.established and _identity_of(n) not in kept]

    def retire(self, peers: Iterable[str]) -> None:
        """Withdraw everything from neighbors that are leaving."""
        self._send([protocol.withdraw_all(peer) for peer in peers])

    def query_neighbors(self) -> None:
        """Have :attr:`neighbors` and :attr:`in_effect` brought up to date."""
        self._send([protocol.SHOW_NEIGHBORS])

    # --- the connection ----------------------------------------------------------------------------------

    def attached(self) -> None:
        """There is a new connection to the bridge: read everything back."""
        self._connection = Connection()
        self._reading = None
        self._read_back()

    def detached(self, now: float) -> None:
        """The connection is gone, and perhaps ExaBGP with it: keep all routes as a restarting speaker does."""
        self._connection = None
        self._reading = None
        self._neighbors.clear()
        for session in self._sessions.values():
            if session.established:
                session.established, session.since = False, now
                session.error = "no connection to ExaBGP"
            session.out.down()
            session.out.forget()
            session.complete = session.refreshing = False
            self._keep_stale(session, now + session.peer.max_restart_time, own=True)

    def receive(self, data: bytes, now: float) -> None:
        """Bytes from the bridge. What makes no sense is counted and said once a connection; nothing raises."""
        if self._connection is None:
            return
        before = self._connection.ignored
        for event in self._connection.receive(data):
            try:
                self._handle(event, now)
            except Exception as error:
                # A defect of ours over one event must not cost the others, nor the agent.
                self._connection.ignored += 1
                self._notes.append(Note("cannot take over an event", detail=repr(error)[:200], warning=True))
        if ignored := self._connection.ignored - before:
            if not before:
                self._notes.append(Note("ExaBGP says what makes no sense; it is left out", warning=True))
            self._ignored += ignored

    def data_to_send(self) -> bytes:
        """Bytes for the bridge."""
        return self._connection.data_to_send() if self._connection else b""

    def tick(self, now: float) -> None:
        """Let time do its part; once a second is enough."""
        for session in self._sessions.values():
            if session.established and not session.complete and now >= session.complete_at:
                session.complete = True
                self._confirm(session)
            if session.nameless and now >= session.nameless_until:
                session.nameless.clear()
            if session.stale_until and now >= session.stale_until:
                session.stale_until = 0.0
                self._note("stale routes removed", session, warning=True)
                if session.established:
                    self._rib.confirm(session.peer.address)
                else:
                    self._rib.drop(session.peer.address)
        if self._read_out_at and now >= self._read_out_at and not self._attaching:
            self._read_out_at = 0.0
            for session in self._sessions.values():
                session.out.forget()
            self._send([protocol.SHOW_NEIGHBORS, protocol.SHOW_RIB_OUT])
        self._in_sync = self._in_sync or self._is_in_sync(now)

    # --- what came of it ---------------------------------------------------------------------------------

    @property
    def routes(self) -> Mapping[str, NextHops]:
        """The best routes, as of the last :meth:`take_changes`."""
        return self._rib.best

    def take_changes(self, most: int | None = None) -> dict[str, NextHops]:
        """Best routes that changed since the last call, all or of ``most`` prefixes; () for one that is gone."""
        return self._rib.take(most)

    @property
    def undecided(self) -> bool:
        """There is more to take."""
        return self._rib.undecided

    @property
    def unresolved(self) -> Mapping[Unresolved, int]:
        """Next hops that cannot be used, and for how many prefixes each; as of the last :meth:`take_changes`."""
        return self._rib.unresolved

    def prefixes_without_next_hop(self) -> int:
        """How many accepted prefixes have no next hop that can be used."""
        return self._rib.prefixes_without_next_hop()

    def take_notes(self) -> list[Note]:
        """Log lines since the last call."""
        notes, self._notes = self._notes, []
        return notes

    @property
    def neighbors(self) -> Mapping[str, protocol.Neighbor]:
        """ExaBGP's neighbors, as last asked for."""
        return self._neighbors

    @property
    def in_effect(self) -> bool:
        """ExaBGP has exactly the configured neighbors."""
        return self._in_effect

    @property
    def pending(self) -> int:
        """Commands that ExaBGP has not answered yet."""
        return self._connection.pending if self._connection else 0

    @property
    def ignored(self) -> int:
        """Lines that made no sense, of all connections."""
        return self._ignored

    @property
    def in_sync(self) -> bool:
        """Every peer has told its whole table, or has had time to. Stays true.

        That time begins with the first configuration, and is the longest ``max_restart_time``: routes of before
        this start get as long as those of a session that ends (RFC 4724 4.1, Selection_Deferral_Timer).
        """
        return self._in_sync

    def peers(self, now: float) -> list[PeerStatus]:
        """One status for each configured peer."""
        return [
            PeerStatus(
                address=peer.address,
                asn=peer.asn,
                established=session.established,
                since=max(0.0, now - session.since),
                received=self._rib.count(peer.address),
                families=(f"ipv{peer.version} unicast",),
                error="" if session.established else session.error,
            )
            for session in self._sessions.values()
            for peer in (session.peer,)
        ]

    # --- events ------------------------------------------------------------------------------------------

    def _handle(self, event: protocol.Event, now: float) -> None:
        match event:
            case protocol.Neighbors():
                self._on_neighbors(event, now)
            case protocol.RibEntry():
                self._on_rib_entry(event)
            case protocol.Answered():
                self._on_answer(event, now)
            case _:
                if session := self._sessions.get(event.peer):
                    self._on_session(session, event, now)

    def _on_session(self, session: Session, event: protocol.Event, now: float) -> None:
        address = session.peer.address
        match event:
            case protocol.Update():
                self._on_update(event)
            case protocol.Open():
                session.router_id, session.restart = event.router_id, event.restart
                self._describe(session)
            case protocol.Up():
                self._on_up(session, now)
            case protocol.Down():
                self._on_down(session, event.reason, now)
            case protocol.EndOfRib():
                session.complete = True
                self._confirm(session)
            case protocol.Refresh(begin=True):
                session.refreshing = True
                self._rib.doubt(address)
            case protocol.Refresh():
                session.refreshing = False
                session.nameless.clear()
                self._confirm(session)
            case protocol.Notified():
                self._note(f"NOTIFICATION {event.code}/{event.subcode}", session, event.text, warning=True)
            case protocol.Gap():
                self._note("events lost, reading back", session, warning=True)
                self._send([protocol.SHOW_NEIGHBORS])
                self._read_in([address])

    def _on_update(self, event: protocol.Update) -> None:
        session = self._sessions[event.peer]
        session.nameless.difference_update(event.withdrawn, (prefix for prefix, _ in event.announced))
        for prefix in event.withdrawn:
            self._rib.withdraw(event.peer, prefix)
        for prefix, path in event.announced:
            self._rib.announce(event.peer, prefix, path)
        if self._reading:
            self._reading.touched.update((event.peer, prefix) for prefix in event.withdrawn)
            self._reading.touched.update((event.peer, prefix) for prefix, _ in event.announced)

    def _on_up(self, session: Session, now: float) -> None:
        peer = session.peer
        session.established, session.since, session.error = True, now, ""
        session.complete = session.refreshing = False
        session.nameless.clear()
        session.complete_at = now + (peer.max_restart_time if session.restart else SETTLE)
        if self._reading:
            self._reading.peers.add(peer.address)
        # Whatever was left of an earlier session must be announced again in this one.
        self._rib.doubt(peer.address)
        # RFC 4724 4.2: a peer that does not say it kept its forwarding state has lost the routes we kept for it.
        # That is about the peer's restart; across our own (4.1) everything stays until its end-of-RIB.
        kept = session.restart is not None and session.restart.forwarding.get(peer.version, False)
        if session.stale_until:
            if kept or session.own_restart:
                session.stale_until = now + peer.max_restart_time
            else:
                session.stale_until = 0.0
                self._rib.drop(peer.address)
        self._note("up", session)
        self._send(session.out.up())

    def _on_down(self, session: Session, reason: str, now: float) -> None:
        session.error = reason
        if not session.established:
            return
        session.established, session.since = False, now
        session.complete = session.refreshing = False
        session.nameless.clear()
        session.out.down()
        if self._reading:
            self._reading.peers.add(session.peer.address)
        # RFC 4724 4.2: keep the routes if the peer announced that it would, but not after a NOTIFICATION.
        restart = session.restart
        notified = reason.startswith(("notification sent", "notification received"))
        if "shutting down" in reason:
            self._keep_stale(session, now + session.peer.max_restart_time, own=True)
        elif restart and session.peer.version in restart.forwarding and not notified:
            self._keep_stale(session, now + restart.time, own=False)
        else:
            session.stale_until = 0.0
            self._rib.drop(session.peer.address)
        self._note("down", session, reason, warning=True)

    def _confirm(self, session: Session) -> None:
        """Let go of what the peer has not repeated, once it has said and we have read all of it."""
        if session.complete and not session.refreshing and not self._reading:
            session.stale_until = 0.0
            session.own_restart = False
            self._rib.confirm(session.peer.address)

    def _keep_stale(self, session: Session, until: float, *, own: bool) -> None:
        self._rib.doubt(session.peer.address)
        # What is stale already does not get more time because the session, or ExaBGP, fails once more.
        session.stale_until = min(until, session.stale_until or until)
        session.own_restart = own

    # --- reading back ------------------------------------------------------------------------------------

    def _on_neighbors(self, event: protocol.Neighbors, now: float) -> None:
        self._neighbors = {neighbor.peer: neighbor for neighbor in event.neighbors}
        for session in self._sessions.values():
            neighbor = self._neighbors.get(session.peer.address)
            established = neighbor is not None and neighbor.established
            if neighbor and established and not session.established and self._attaching:
                # It was up before we came, so its end-of-RIB may be past; a young session's may be yet to come.
                session.established, session.since, session.error = True, now - neighbor.age, ""
                session.router_id = neighbor.router_id
                session.complete_at = now + max(0.0, SETTLE - neighbor.age)
                self._describe(session)
            elif established and not session.established:
                self._on_up(session, now)
            elif session.established and not established:
                self._on_down(session, "ExaBGP has no session", now)
        in_effect = {_identity_of(n) for n in event.neighbors} == {
            _identity(session.peer) for session in self._sessions.values()
        }
        if in_effect and not self._in_effect:
            # A reload makes new neighbor objects, and an end-of-RIB still queued in an old one is lost.
            for session in self._sessions.values():
                self._send(session.out.end_of_rib())
        self._in_effect = in_effect

    def _read_back(self) -> None:
        self._attaching = True
        for session in self._sessions.values():
            session.out.forget()
        self._send([protocol.SHOW_NEIGHBORS, protocol.SHOW_RIB_OUT])
        self._read_in(self._sessions)

    def _read_in(self, doubtful: Iterable[str]) -> None:
        if self._reading:
            self._reading.again = True
            return
        self._reading = Reading()
        for address in doubtful:
            self._rib.doubt(address)
        self._send([protocol.SHOW_RIB_IN])

    def _on_rib_entry(self, entry: protocol.RibEntry) -> None:
        session = self._sessions.get(entry.peer)
        if session is None or version(entry.prefix) != session.peer.version:
            return
        if entry.outgoing:
            session.out.learned(entry.prefix)
            return
        reading = self._reading
        newer = reading is None or entry.peer in reading.peers or (entry.peer, entry.prefix) in reading.touched
        # ExaBGP empties a table when its session comes up, not when it ends.
        if reading and session.established and not newer:
            if entry.path:
                self._rib.announce(entry.peer, entry.prefix, entry.path)
            else:
                self._rib.believe(entry.peer, entry.prefix)
                reading.nameless.setdefault(entry.peer, set()).add(entry.prefix)

    def _on_answer(self, answer: protocol.Answered, now: float) -> None:
        if answer.command == protocol.SHOW_RIB_OUT:
            self._attaching = False
            for session in self._sessions.values():
                self._send(session.out.synchronise(established=session.established))
        elif answer.command == protocol.SHOW_RIB_IN:
            self._finish_reading(now)
        elif not answer.ok:
            # Most likely a neighbor that a reload has just taken away or not yet brought.
            self._notes.append(Note("ExaBGP refused", detail=answer.command[:200], warning=True))
            self._read_out_at = now + 1.0

    def _finish_reading(self, now: float) -> None:
        reading, self._reading = self._reading, None
        if reading is None:
            return
        if reading.again:
            self._read_in(self._sessions)
            return
        for session in self._sessions.values():
            address = session.peer.address
            self._confirm(session)
            neighbor = self._neighbors.get(address)
            nameless = reading.nameless.get(address)
            if nameless and neighbor and neighbor.route_refresh:
                # ExaBGP's table keeps the last next hop listed, and for IPv6 that is the link-local one, which
                # is of no use without an interface. An update has both, so the peer must say it again. Until it
                # has, these routes are not gone: we are not in sync.
                session.nameless, session.nameless_until = nameless, now + SETTLE
                self._send([protocol.route_refresh(address)])

    # --- small things ------------------------------------------------------------------------------------

    def _is_in_sync(self, now: float) -> bool:
        if self._deferred_until is not None and now >= self._deferred_until:
            return True
        if self._unreachable != 0 or self._attaching or self._reading:
            return False
        if self._sessions and not self._in_effect:
            return False
        return all(session.told for session in self._sessions.values())

    def _describe(self, session: Session) -> None:
        peer = session.peer
        self._rib.set_source(
            Source(
                address=peer.address,
                router_id=session.router_id,
                local_asn=peer.local_asn,
                local_address=peer.source_address,
                external=peer.external,
                allowed_own_asns=peer.allowed_own_asns,
            )
        )

    def _of_family(self, peer: Peer) -> list[str]:
        return [prefix for prefix in self._wanted or () if version(prefix) == peer.version]

    def _send(self, commands: Iterable[str]) -> None:
        if self._connection:
            for command in commands:
                self._connection.command(command)

    def _note(self, text: str, session: Session, detail: str = "", *, warning: bool = False) -> None:
        self._notes.append(Note(text, session.peer.address, detail, warning))


def _identity(peer: Peer) -> tuple[str, str, int, int]:
    return peer.address, peer.source_address, peer.asn, peer.local_asn


def _identity_of(neighbor: protocol.Neighbor) -> tuple[str, str, int, int]:
    return neighbor.peer, neighbor.local_address, neighbor.asn, neighbor.local_asn
