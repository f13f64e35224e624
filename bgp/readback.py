"""Reading back ExaBGP's state that it does not report by events: its announcements and received routes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bgp import events, protocol
from bgp.channel import Channel
from bgp.prefixes import version
from bgp.rib import Rib
from bgp.session import Session


@dataclass(slots=True)
class Reading:
    """A pending SHOW_RIB_IN. Routes that live events have ``touched`` meanwhile are newer than its lines."""

    touched: set[tuple[str, str, str]] = field(default_factory=set)
    peers: set[str] = field(default_factory=set)
    unusable: dict[str, set[str]] = field(default_factory=dict)
    again: bool = False


class ReadBack:
    """Queries to ExaBGP, and the effects of the answers. No route is removed in between."""

    def __init__(self, sessions: Mapping[str, Session], rib: Rib, channel: Channel) -> None:
        self._sessions = sessions
        self._rib = rib
        self._channel = channel
        self.attaching = False
        """Whether ExaBGP's announcements are still to be read since the agent attached."""
        self._reading: Reading | None = None
        self._out_at = 0.0

    @property
    def reading(self) -> bool:
        """Whether peers' routes are being read."""
        return self._reading is not None

    def everything(self) -> None:
        """Read all state, as when the agent attaches."""
        self.attaching = True
        self._read_out()
        self.received(self._sessions)

    def received(self, doubtful: Iterable[str]) -> None:
        """Read the peers' routes; routes of ``doubtful`` peers that are not found are removed."""
        if self._reading:
            self._reading.again = True
            return
        self._reading = Reading()
        for address in doubtful:
            self._rib.doubt(address)
        self._channel.send(protocol.SHOW_RIB_IN)

    def stop(self) -> None:
        """Give up waiting for answers."""
        self._reading = None

    def tick(self, now: float) -> None:
        """Repeat a postponed query."""
        if self._out_at and now >= self._out_at and not self.attaching:
            self._out_at = 0.0
            self._read_out()

    def updated(self, event: events.Update) -> None:
        """Note a live event during a reading."""
        if self._reading:
            self._reading.touched.update((event.peer, *nlri) for nlri in event.withdrawn)
            self._reading.touched.update((event.peer, prefix, path.path_id) for prefix, path in event.announced)

    def changed(self, address: str) -> None:
        """Note a session that came up or ended during a reading."""
        if self._reading:
            self._reading.peers.add(address)

    def entry(self, entry: events.RibEntry) -> None:
        """Handle one line of an answer."""
        session = self._sessions.get(entry.peer)
        if session is None or version(entry.prefix) not in session.peer.carried:
            return
        if entry.outgoing:
            session.out.learned(entry.prefix, entry.announcement)
            return
        reading = self._reading
        key = entry.peer, entry.prefix, entry.path_id
        newer = reading is None or entry.peer in reading.peers or key in reading.touched
        # ExaBGP empties a table when its session comes up, not when it ends.
        if reading and session.usable and not newer:
            if entry.path:
                self._rib.announce(entry.peer, entry.prefix, session.scoped(entry.path))
            else:
                self._rib.believe(entry.peer, entry.prefix, entry.path_id)
                reading.unusable.setdefault(entry.peer, set()).add(entry.prefix)

    def answered(self, answer: events.Answered, neighbors: Mapping[str, events.Neighbor], now: float) -> None:
        """Handle the end of an answer."""
        if answer.command == protocol.SHOW_RIB_OUT:
            self.attaching = False
            for session in self._sessions.values():
                self._channel.send(*session.out.synchronise(established=session.usable))
        elif answer.command == protocol.SHOW_RIB_IN:
            self._finish(neighbors, now)
        elif not answer.ok:
            # Most likely a neighbor that a reload has just removed or not yet added.
            self._channel.note("ExaBGP refused", detail=answer.command[:200], warning=True)
            self._out_at = now + 1.0

    def _read_out(self) -> None:
        for session in self._sessions.values():
            session.out.forget()
        self._channel.send(protocol.SHOW_NEIGHBORS, protocol.SHOW_RIB_OUT)

    def _finish(self, neighbors: Mapping[str, events.Neighbor], now: float) -> None:
        reading, self._reading = self._reading, None
        if reading is None:
            return
        if reading.again:
            self.received(self._sessions)
            return
        for address, session in self._sessions.items():
            session.confirm()
            unusable, neighbor = reading.unusable.get(address), neighbors.get(address)
            if unusable and neighbor and neighbor.route_refresh:
                session.ask_again(unusable, now)
