"""Adj-rib-out of one session: what it should announce, what ExaBGP has been told, and when to say end-of-RIB.

Nothing is ever sent to a session that is down: ExaBGP would hold it as pending output and, as long as anything is
pending anywhere, drop every reload without a word.
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
        """ExaBGP already announces this to the peer, from the time before us."""
        self._sent.add(prefix)

    def forget(self) -> None:
        """What ExaBGP announces must be read anew; until :meth:`synchronise` nothing is sent."""
        self._sent.clear()
        self._read = False

    def synchronise(self, *, established: bool) -> list[str]:
        """Everything ExaBGP announces has been learned, as has the state of its session."""
        self._read = True
        self._established = established
        return self._difference() + self.end_of_rib()

    def up(self) -> list[str]:
        """The session is Established: announce all of it, then end-of-RIB.

        All, although ExaBGP repeats by itself what it knows: of a peer that was removed and added again it knows
        nothing. As long as the agent has not said what it wants, the peer gets no end-of-RIB and so keeps what it
        has from our last life (RFC 4724 4.1).
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
        """The session ended. ExaBGP keeps what it was told and repeats it when the session comes back."""
        self._established = False

    def want(self, prefixes: Iterable[str]) -> list[str]:
        """The prefixes to announce from now on."""
        first = self._wanted is None
        self._wanted = frozenset(prefixes)
        commands = self._difference()
        return commands + self.end_of_rib() if first else commands

    def end_of_rib(self) -> list[str]:
        """End-of-RIB, if it is true. Saying it twice does no harm."""
        return [protocol.end_of_rib(self._peer)] if self._active and self._wanted is not None else []

    def _difference(self) -> list[str]:
        if not self._active or self._wanted is None:
            return []
        # Announcements first: what moves from one prefix to another stays reachable all the time.
        commands = [
            *protocol.announce(self._peer, self._wanted - self._sent),
            *protocol.withdraw(self._peer, self._sent - self._wanted),
        ]
        self._sent = set(self._wanted)
        return commands

    @property
    def _active(self) -> bool:
        return self._established and self._read
