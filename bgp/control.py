"""The agent's side of BGP without I/O: events of ExaBGP in, commands and best routes out; time is an argument.

Control ── wanted announcements, peers, synchronisation
  ├─ Session   one peer: state machine, graceful restart, announcements
  ├─ ReadBack  ExaBGP's state from before the agent attached
  ├─ Rib       routes and the choice among them
  └─ Channel   commands to ExaBGP, events and log lines from it
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from bgp import events, export, protocol
from bgp.announcement import Announcement
from bgp.bfd.session import Path
from bgp.bfd.settings import Report, key_of
from bgp.channel import Channel
from bgp.decision import Candidate, Identity
from bgp.model import Peer, SpeakerConfig
from bgp.readback import ReadBack
from bgp.rib import PREFIX_LIMIT, NextHops, Rib
from bgp.session import Bfd, LimitState, PeerStatus, Session
from bgp.trace import of_best

_BFD_MOST = 4096

HOLD_DOWN = 300.0
"""Seconds for which a session stays down whose peer announced more prefixes than its limit."""

_WARN_AT, _CALM_AT = 0.8, 0.7
_FLAPPING_AGAIN = 600.0


@dataclass(frozen=True, slots=True)
class Held:
    """A session that is held down ``until`` a time, since its peer was over ``limit``."""

    limit: int
    until: float


class Control:
    """All BGP state of the agent. ``now`` is a monotonic clock's seconds."""

    def __init__(self) -> None:
        self.rib = Rib()
        """Learned routes, whose filter and reach callers set, and whose changes they take."""
        self.channel = Channel()
        """Commands to send, and log lines."""
        self._sessions: dict[str, Session] = {}
        self._readback = ReadBack(self._sessions, self.rib, self.channel)
        self._wanted: dict[str, Announcement] | None = None
        self._own = Identity()
        self._held: dict[str, Held] = {}
        self._warned: set[str] = set()
        self._flapping_noted: dict[str, float] = {}
        self.neighbors: Mapping[str, events.Neighbor] = {}
        """ExaBGP's neighbors by the last query."""
        self.in_effect = False
        """Whether ExaBGP has exactly the configured neighbors."""
        self.in_sync = False
        """Whether every peer has sent its whole table, or has had time to. Stays true.

        That time begins with the first configuration and is the longest ``max_restart_time``: routes from before
        this start are kept as long as those of an ended session (RFC 4724 4.1, Selection_Deferral_Timer).
        """
        self._complete = True
        self._unreachable: int | None = None
        self._deferred_until: float | None = None
        self._bfd: dict[tuple[str, str], Bfd] = {}

    # --- what the agent wants ----------------------------------------------------------------------------

    def configure(self, config: SpeakerConfig, peers: Sequence[Peer], now: float) -> None:
        """Set the peers that this node can reach, each with its source address; routes of others are dropped.

        Peers that are held down (:meth:`holds`) must not be among them.
        """
        wanted = {peer.key: peer for peer in peers}
        self._held = {a: held for a, held in self._held.items() if a not in wanted}
        self._unreachable = sum(p.key not in wanted and p.key not in self._held for p in config.peers)
        self.rib.set_max_paths(config.max_paths)
        own = Identity(config.router_id, next((p.cluster_id for p in config.peers if p.cluster_id), ""))
        another, self._own = own != self._own, own
        if self._deferred_until is None:
            self._complete = not own.cluster_id
        self.rib.set_own(own)
        for address in self._sessions.keys() - wanted.keys():
            self._remove(address)
        new = wanted.keys() - self._sessions.keys()
        for address, peer in wanted.items():
            if address in new:
                session = self._sessions[address] = Session(peer, self.rib, self.channel, now)
                session.tell_bfd(self._bfd.get(key_of(peer)), now)
            else:
                session = self._sessions[address]
                if peer == session.peer and not another:
                    continue
                session.configure(peer)
            self.channel.send(*session.out.set_complete(self._complete))
            self._export_all(session)
        if self._deferred_until is None:
            self._deferred_until = now + max((peer.max_restart_time for peer in config.peers), default=0)
        self.in_effect = False
        if new and self.channel.is_open:
            # ExaBGP may have had the new peer before.
            self._readback.everything()

    def announce(self, announcements: Iterable[Announcement | str]) -> None:
        """Set all that is announced to the peers of its family, as their filters have it; the rest is withdrawn.

        A bare prefix has the default attributes. Of several with one prefix the last one counts.
        """
        whole = (Announcement(one) if isinstance(one, str) else one for one in announcements)
        self._wanted = {announcement.prefix: announcement for announcement in whole}
        for session in self._sessions.values():
            self._export_all(session)

    def holds(self, peer: Peer) -> bool:
        """Whether a peer is held down, since it was over the limit that it still has."""
        held = self._held.get(peer.key)
        return held is not None and held.limit == peer.prefix_limit

    def held_reason(self, address: str, now: float) -> str:
        """Why a peer is held down and for how long, for people; empty: it is not."""
        held = self._held.get(address)
        if held is None:
            return ""
        # In minutes, since each other text is another write to the API server.
        minutes = max(1, ceil((held.until - now) / 60))
        return f"it announced more than {held.limit or PREFIX_LIMIT} prefixes; held down for {minutes} min more"

    @property
    def held(self) -> Mapping[str, Held]:
        """The peers that are held down."""
        return self._held

    def hold(self, address: str, held: Held, now: float) -> None:
        """Hold a peer down as an earlier life of the agent has, unless that was in another life of the clock."""
        if now < held.until <= now + HOLD_DOWN:
            self._held[address] = held

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

    def probe(self) -> None:
        """Have ExaBGP answer, if it can."""
        self.channel.send(protocol.NOTHING)

    # --- the connection ----------------------------------------------------------------------------------

    def attached(self) -> None:
        """A new connection to the bridge is open: read everything back."""
        self.channel.open()
        self._readback.stop()
        self._readback.everything()

    def detached(self, now: float, reason: str = "no connection to ExaBGP") -> None:
        """The connection is gone, and perhaps ExaBGP with it: keep all routes as a restarting speaker does."""
        self.channel.close()
        self._readback.stop()
        self.neighbors = {}
        for session in self._sessions.values():
            session.detached(now, reason)

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
        self.rib.tick(now)
        self._note_flapping(now)
        for session in self._sessions.values():
            session.tick(now)
            self._confirm(session)
        self._readback.tick(now)
        self._held = {address: held for address, held in self._held.items() if now < held.until}
        self.in_sync = self.in_sync or self._is_in_sync(now)
        if not self._complete and self._has_all_to_reflect(now):
            self._complete = True
            for session in self._sessions.values():
                self.channel.send(*session.out.set_complete(True))

    # --- results -----------------------------------------------------------------------------------------

    def take(self, most: int | None = None) -> dict[str, NextHops]:
        """:meth:`Rib.take`, and what a route reflector passes on of it."""
        changes = self.rib.take(most)
        if self.channel.trace:
            for prefix, next_hops in changes.items():
                self.channel.trace(of_best(prefix, next_hops))
        reflected = self.rib.take_reflected()
        if self._wanted is not None and reflected:
            self._pass_on({prefix: one for prefix, one in reflected.items() if prefix not in self._wanted})
        return changes

    @property
    def postponed(self) -> bool:
        """Whether changes of announcements wait to be sent."""
        return any(session.out.postponed for session in self._sessions.values())

    def peers(self, now: float) -> list[PeerStatus]:
        """One status for each configured peer."""
        statuses = (session.status(now) for session in self._sessions.values())
        near = LimitState.NEAR
        return [replace(one, limit_state=near) if one.address in self._warned else one for one in statuses]

    def announced(self) -> dict[str, Mapping[str, Announcement | None]]:
        """Peer -> what it is told, by prefix, of those whose session is up."""
        return {peer: session.out.sent for peer, session in self._sessions.items() if session.established}

    def refused(self) -> dict[str, Mapping[str, str]]:
        """Peer -> what it cannot be told, by prefix, and why, of those whose session is up."""
        return {peer: session.out.refused for peer, session in self._sessions.items()}

    # --- events ------------------------------------------------------------------------------------------

    def _handle(self, now: float, event: events.Event) -> None:
        match event:
            case events.Neighbors():
                self._on_neighbors(event, now)
            case events.RibEntry():
                self._readback.entry(event)
                self._check_limit(event.peer, now)
            case events.Answered():
                self._readback.answered(event, self.neighbors, now)
            case _:
                if session := self._sessions.get(event.peer):
                    self._on_session(session, event, now)
                    self._check_limit(event.peer, now)

    def _on_session(self, session: Session, event: events.Event, now: float) -> None:
        match event:
            case events.Gap():
                self.channel.note("events lost, reading back", event.peer, warning=True)
                self.channel.send(protocol.SHOW_NEIGHBORS)
                self._readback.received([event.peer])
            case events.Update():
                self._readback.updated(event)
            case events.Up():
                self._readback.changed(event.peer)
            case events.Down() if session.established:
                self._readback.changed(event.peer)
        session.receive(event, now)
        self._confirm(session)
        if isinstance(event, events.Open) and self._own.cluster_id:
            self._export_all(session)

    def _on_neighbors(self, event: events.Neighbors, now: float) -> None:
        self.neighbors = {neighbor.peer: neighbor for neighbor in event.neighbors}
        for address, session in self._sessions.items():
            neighbor = self.neighbors.get(address)
            established = neighbor is not None and neighbor.established
            if neighbor and established:
                # Also of a session that is known: its OPEN may have been among events that were lost.
                session.negotiated(neighbor.families, extended_next_hop=neighbor.extended_next_hop)
            if established == session.established:
                continue
            if neighbor and established and self._readback.attaching:
                session.take_over(neighbor, now)
                continue
            self._readback.changed(address)
            if neighbor and established:
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

    def _check_limit(self, address: str, now: float) -> None:
        """Warn of a peer that is near its limit, and hold one down that is over it."""
        session = self._sessions.get(address)
        if session is None:
            return
        count, limit = self.rib.count(address), self.rib.limit(address)
        if self.rib.over(address):
            self._held[address] = Held(session.peer.prefix_limit, now + HOLD_DOWN)
            self._remove(address)
            self.channel.note("held down", address, self.held_reason(address, now), warning=True)
        elif count >= _WARN_AT * limit and address not in self._warned:
            self._warned.add(address)
            detail = f"{count} of {limit} prefixes; over that, the session is ended"
            self.channel.note("near its prefix limit", address, detail, warning=True)
        elif count < _CALM_AT * limit:
            self._warned.discard(address)

    def _note_flapping(self, now: float) -> None:
        """Say which peers have paths that flap, once in a while."""
        for peer in self.rib.flapping:
            if now >= self._flapping_noted.get(peer, now):
                self._flapping_noted[peer] = now + _FLAPPING_AGAIN
                self.channel.note("routes flap", peer, "each is left out until it is quiet", warning=True)

    def _remove(self, address: str) -> None:
        del self._sessions[address]
        self._warned.discard(address)
        self._flapping_noted.pop(address, None)
        self.rib.drop(address)

    def _export_all(self, session: Session) -> None:
        """Set what a session announces: our own, and what is passed on of the learned routes."""
        if self._wanted is None:
            return
        exports = {
            prefix: self._reflect(session.peer, prefix, one)
            for prefix, one in self.rib.reflected.items()
            if not self._goes_back(session, one)
        }
        exports |= {prefix: export.own(one, session.peer) for prefix, one in self._wanted.items()}
        session.want({prefix: one for prefix, one in exports.items() if one})

    def _pass_on(self, changes: Mapping[str, Candidate | None]) -> None:
        """Announce changes of learned routes. What peers of one group get is made once: there may be hundreds."""
        groups: dict[Hashable, list[Session]] = {}
        for session in self._sessions.values():
            groups.setdefault(export.group(session.peer), []).append(session)
        for sessions in groups.values():
            shared = {prefix: self._reflect(sessions[0].peer, prefix, one) for prefix, one in changes.items()}
            for session in sessions:
                back = {prefix for prefix, one in changes.items() if one and self._goes_back(session, one)}
                session.change(shared | dict.fromkeys(back))

    def _reflect(self, to: Peer, prefix: str, candidate: Candidate | None) -> Announcement | None:
        if candidate is None:
            return None
        return export.reflected(prefix, candidate, to, self._own, self.rib.interface(candidate[1].next_hop))

    def _goes_back(self, session: Session, candidate: Candidate) -> bool:
        return export.goes_back(candidate, session.peer, session.router_id)

    def _has_all_to_reflect(self, now: float) -> bool:
        """Whether a route reflector knows all that it passes on, or had time to (RFC 4724, 4.1).

        It does not wait for other reflectors, which may wait for it.
        """
        if self._deferred_until is None:
            return False
        if now >= self._deferred_until:
            return True
        sources = [s for s in self._sessions.values() if s.peer.cluster_id or s.peer.external]
        waiting = self._unreachable or self._readback.attaching or self._readback.reading or self.rib.undecided
        return not waiting and all(session.told for session in sources)

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
