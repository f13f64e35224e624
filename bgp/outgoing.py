"""Adj-rib-out of one session: wanted announcements, announcements in ExaBGP, and end-of-RIB.

Nothing is sent to a session that is down: ExaBGP would keep it as pending output and, as long as any output is
pending, silently drop every reload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bgp import protocol
from bgp.model import Peer
from bgp.prefixes import FAMILIES, version


class Outgoing:
    """One peer's announcements. Each method returns the commands to send now, in order."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.families = frozenset(peer.carried)
        """Those that the session has, which a peer may have less of than is configured."""
        self._sent: set[str] = set()
        self._wanted: frozenset[str] | None = None
        self._established = False
        self._read = False

    def configure(self, peer: Peer) -> list[str]:
        """Set the peer's settings; its address never changes. Another next hop is announced."""
        moved = [family for family in FAMILIES if peer.next_hop(family) != self._peer.next_hop(family)]
        self._sent = {prefix for prefix in self._sent if version(prefix) not in moved}
        self._peer = peer
        return self._difference()

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
        wanted = self._carried()
        commands = [
            *self._commands(protocol.withdraw, self._sent - wanted),
            *self._commands(protocol.announce, wanted),
        ]
        self._sent = set(wanted)
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
        """End-of-RIB of each family, if everything is announced. Repeating it is harmless."""
        if not self._active or self._wanted is None:
            return []
        return [protocol.end_of_rib(self._peer.address, family) for family in sorted(self.families)]

    def _difference(self) -> list[str]:
        if not self._active or self._wanted is None:
            return []
        # Announcements first: addresses that move from one prefix to another stay reachable.
        wanted = self._carried()
        commands = [
            *self._commands(protocol.announce, wanted - self._sent),
            *self._commands(protocol.withdraw, self._sent - wanted),
        ]
        self._sent = set(wanted)
        return commands

    def _carried(self) -> set[str]:
        """What is wanted, of the families that the session has."""
        return {prefix for prefix in self._wanted or () if version(prefix) in self.families}

    def _commands(
        self, command: Callable[[str, Iterable[str], str], Iterator[str]], prefixes: set[str]
    ) -> Iterator[str]:
        for family in FAMILIES:
            of_family = {prefix for prefix in prefixes if version(prefix) == family}
            yield from command(self._peer.address, of_family, self._peer.next_hop(family))

    @property
    def _active(self) -> bool:
        return self._established and self._read
