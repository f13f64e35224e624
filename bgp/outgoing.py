"""Adj-rib-out of one session: wanted announcements, announcements in ExaBGP, and end-of-RIB.

Nothing is sent to a session that is down: ExaBGP would keep it as pending output and, as long as any output is
pending, silently drop every reload.
"""

from __future__ import annotations

from collections.abc import Iterable

from bgp import protocol


class Outgoing:
    """One peer's announcements. Each method returns the commands to send now, in order."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._sent: set[str] = set()
        self._wanted: frozenset[str] | None = None
        self._established = False
        self._read = False

    def learned(self, prefix: str) -> None:
        """Note a prefix that ExaBGP already announces to the peer."""
        self._sent.add(prefix)

    def forget(self) -> None:
        """Forget what ExaBGP announces, to be read anew; until :meth:`synchronise` nothing is sent."""
        self._sent.clear()
        self._read = False

    def synchronise(self, *, established: bool) -> list[str]:
        """All that ExaBGP announces has been learned, and whether the session is established."""
        self._read, self._established = True, established
        return self._difference() + self.end_of_rib()

    def up(self) -> list[str]:
        """The session is Established: announce everything, then end-of-RIB.

        ExaBGP repeats announcements by itself, but not those of a peer that was removed and added again. Until
        the agent has set its prefixes, the peer gets no end-of-RIB and so keeps the routes of our previous run
        (RFC 4724 4.1).
        """
        self._established = True
        if not self._active or self._wanted is None:
            return []
        commands = [
            *protocol.withdraw(self._peer, self._sent - self._wanted),
            *protocol.announce(self._peer, self._wanted),
        ]
        self._sent = set(self._wanted)
        return commands + self.end_of_rib()

    def down(self) -> None:
        """The session ended. ExaBGP keeps its announcements and repeats them when the session comes back."""
        self._established = False

    def want(self, prefixes: Iterable[str]) -> list[str]:
        """Set the prefixes to announce from now on."""
        first = self._wanted is None
        self._wanted = frozenset(prefixes)
        commands = self._difference()
        return commands + self.end_of_rib() if first else commands

    def end_of_rib(self) -> list[str]:
        """End-of-RIB, if everything is announced. Repeating it is harmless."""
        return [protocol.end_of_rib(self._peer)] if self._active and self._wanted is not None else []

    def _difference(self) -> list[str]:
        if not self._active or self._wanted is None:
            return []
        # Announcements first: addresses that move from one prefix to another stay reachable.
        commands = [
            *protocol.announce(self._peer, self._wanted - self._sent),
            *protocol.withdraw(self._peer, self._sent - self._wanted),
        ]
        self._sent = set(self._wanted)
        return commands

    @property
    def announced(self) -> int:
        """Number of prefixes that ExaBGP announces."""
        return len(self._sent)

    @property
    def _active(self) -> bool:
        return self._established and self._read
