"""Adj-rib-out of one session: wanted announcements, announcements in ExaBGP, and end-of-RIB.

Nothing is sent to a session that is down: ExaBGP would keep it as pending output and, as long as any output is
pending, silently drop every reload.

ExaBGP collects what it is to send by attributes, and sends it in the order in which these came first. So of two
changes of one prefix that it gets before it sends, the older may go out last, unless both have the same
attributes. That is why a prefix whose attributes have just changed waits with another change of them (as with RFC
4271's MinRouteAdvertisementIntervalTimer, 9.2.1.1), and why a withdrawal has the attributes of the announcement.

ExaBGP may put an announcement and a withdrawal into one message, and peers withdraw first. So a prefix that is
given up for more specific ones waits until these have gone out: else their addresses had no route for a moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from bgp import protocol
from bgp.announcement import Announcement
from bgp.model import Peer
from bgp.prefixes import PrefixSet, version

INTERVAL = 1.0
"""Seconds. Attributes of a prefix change once in one to two of them."""


class Outgoing:
    """One peer's announcements. Each method returns the commands to send now, in order."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self.families = frozenset(peer.carried)
        """Those that the session has, which a peer may have less of than is configured."""
        self._extended_next_hop = False
        self._sent: dict[str, Announcement | None] = {}
        self._wanted: dict[str, Announcement] | None = None
        self._postponed: set[str] = set()
        self._recent: dict[str, Announcement | None] = {}
        self._earlier: dict[str, Announcement | None] = {}
        self._covering: set[str] = set()
        self._covering_earlier: set[str] = set()
        """Prefixes to be withdrawn once the more specific ones that replace them are with the peer."""
        self._since = 0.0
        self._established = False
        self._read = False
        self._complete = True
        self._found: set[str] = set()

    @property
    def postponed(self) -> bool:
        """Whether a change waits for its time."""
        return bool(self._postponed or self._covering or self._covering_earlier)

    @property
    def refused(self) -> Mapping[str, str]:
        """What is of the session's configured families and cannot be announced, by prefix, and why."""
        if not (self._established and self._wanted and (reasons := self.refusals)):
            return {}
        left_out = (prefix for prefix, asked in self._wanted.items() if self._resolved(asked) is None)
        return {prefix: reasons[version(prefix)] for prefix in left_out if version(prefix) in reasons}

    @property
    def refusals(self) -> Mapping[int, str]:
        """The configured families whose prefixes cannot have our own address as next hop, and why."""
        found = {family: self._refusal(family) for family in self._peer.carried}
        return {family: reason for family, reason in found.items() if reason}

    def negotiated(self, families: Collection[int], *, extended_next_hop: bool) -> list[str]:
        """Set what the peer's OPEN and ours agree on: families, and whether IPv4 may have IPv6 next hops."""
        before = self.families, self._extended_next_hop
        self.families = frozenset(self._peer.carried) & frozenset(families)
        self._extended_next_hop = extended_next_hop
        return self._change(self._all()) if before != (self.families, self._extended_next_hop) else []

    def configure(self, peer: Peer) -> list[str]:
        """Set the peer's settings; its address never changes. Another next hop is announced."""
        self._peer = peer
        return self._change(self._all())

    def learned(self, prefix: str, announcement: Announcement | None) -> None:
        """Note what ExaBGP already announces to the peer, as it says; None: its attributes are of no use."""
        if announcement:
            of_session = version(prefix) == self._peer.version
            if of_session and announcement.next_hop == self._peer.source_address:
                announcement = replace(announcement, next_hop="self")
            if self._own_asn and announcement.as_path[:1] == (self._own_asn,):
                announcement = replace(announcement, as_path=announcement.as_path[1:])
        self._sent[prefix] = announcement
        self._found.add(prefix)

    def forget(self) -> None:
        """Forget what ExaBGP announces, to be read anew; until :meth:`synchronise` nothing is sent."""
        self._sent.clear()
        self._found.clear()
        self._read = False
        self._covering, self._covering_earlier = set(), set()

    def synchronise(self, *, established: bool) -> list[str]:
        """All that ExaBGP announces has been learned, and whether the session is established."""
        self._read, self._established = True, established
        self._recent.update(self._sent)
        return self._change(self._all()) + self.end_of_rib()

    def set_complete(self, complete: bool) -> list[str]:
        """Whether what is wanted is all that there is to announce, as it is at first.

        Before, there is no end-of-RIB, and what an earlier life has announced stays.
        """
        before, self._complete = self._complete, complete
        return self._change(self._all()) + self.end_of_rib() if complete and not before else []

    def up(self) -> list[str]:
        """The session is Established: announce everything, then end-of-RIB.

        ExaBGP repeats announcements by itself, but not those of a peer that was removed and added again. Until
        the agent has set its prefixes, the peer gets no end-of-RIB and so keeps the routes of our previous run
        (RFC 4724 4.1).
        """
        self._established = True
        if not self._active or self._wanted is None:
            return []
        self._recent.update(self._sent)
        before = dict(self._sent)
        commands = self._change(self._all())
        again = [one for prefix, one in before.items() if one and self._sent.get(prefix) == one]
        return commands + list(protocol.announce(self._peer.key, again, self._own_asn)) + self.end_of_rib()

    def down(self) -> None:
        """The session ended. ExaBGP keeps its announcements and repeats them when the session comes back."""
        self._established = False
        self._covering, self._covering_earlier = set(), set()

    def want(self, announcements: Mapping[str, Announcement]) -> list[str]:
        """Set what to announce from now on, by prefix."""
        first = self._wanted is None
        self._wanted = dict(announcements)
        commands = self._change(self._all())
        return commands + self.end_of_rib() if first else commands

    def change(self, changes: Mapping[str, Announcement | None]) -> list[str]:
        """Change what to announce, after :meth:`want`; None: withdraw."""
        if self._wanted is None:
            return []
        for prefix, announcement in changes.items():
            if announcement:
                self._wanted[prefix] = announcement
            else:
                self._wanted.pop(prefix, None)
        return self._change(changes)

    def tick(self, now: float) -> list[str]:
        """Send what was postponed and has waited."""
        if now - self._since < INTERVAL:
            return []
        self._since = now
        self._earlier, self._recent = self._recent, {}
        due, self._postponed = self._postponed | self._covering_earlier, set()
        self._covering_earlier, self._covering = self._covering, set()
        return self._change(due)

    def end_of_rib(self) -> list[str]:
        """End-of-RIB of each family, if everything is announced. Repeating it is harmless."""
        if not (self._complete and self._active) or self._wanted is None:
            return []
        return [protocol.end_of_rib(self._peer.key, family) for family in sorted(self.families)]

    def _all(self) -> set[str]:
        return self._sent.keys() | (self._wanted or {}).keys()

    def _change(self, prefixes: Iterable[str]) -> list[str]:
        """Commands for those of the prefixes whose announcement differs from what was sent."""
        if not self._active or self._wanted is None:
            return []
        announced: list[Announcement] = []
        leaving: list[str] = []
        for prefix in prefixes:
            self._postponed.discard(prefix)
            wanted, sent = self._resolved(self._wanted.get(prefix)), self._sent.get(prefix)
            if wanted is None:
                covers = prefix in self._covering or prefix in self._covering_earlier
                if prefix in self._sent and not covers and (self._complete or prefix not in self._found):
                    leaving.append(prefix)
                continue
            self._found.discard(prefix)
            self._covering.discard(prefix)
            self._covering_earlier.discard(prefix)
            if wanted != sent:
                now = self._recent.get(prefix, self._earlier.get(prefix, wanted))
                if now != wanted:
                    self._postponed.add(prefix)
                # Meanwhile a prefix that was just withdrawn has its attributes of before.
                if now and now != sent:
                    self._recent[prefix] = self._sent[prefix] = now
                    announced.append(now)
        # Announcements first: addresses that move from one prefix to another stay reachable.
        return [
            *protocol.announce(self._peer.key, announced, self._own_asn),
            *protocol.withdraw(self._peer.key, self._withdraw(leaving, announced), self._own_asn),
        ]

    def _withdraw(self, prefixes: list[str], announced: Iterable[Announcement]) -> list[Announcement]:
        """Returns what can be withdrawn at once of the prefixes; the others wait."""
        all_of_them = PrefixSet(prefixes)
        inside = [one.prefix for one in announced if all_of_them.covers(one.prefix)] if prefixes else []
        covering = {prefix for prefix in prefixes if inside and any(map(PrefixSet([prefix]).covers, inside))}
        self._covering |= covering
        withdrawn = []
        for prefix in prefixes:
            if prefix not in covering:
                self._recent[prefix] = sent = self._sent.pop(prefix)
                withdrawn.append(sent or Announcement(prefix))
        return withdrawn

    def _resolved(self, announcement: Announcement | None) -> Announcement | None:
        """An announcement with a next hop that the session can carry, if need be our own; None: there is none."""
        if announcement is None or (family := version(announcement.prefix)) not in self.families:
            return None
        if self._can_carry(announcement.next_hop, family):
            return announcement
        return None if self._refusal(family) else replace(announcement, next_hop=self._peer.next_hop(family))

    def _refusal(self, family: int) -> str:
        """Why no prefix of a family can have our own address as its next hop; empty: it can."""
        if family not in self.families:
            return f"IPv{family} is not agreed on"
        own = self._peer.next_hop(family)
        if own == "self" or self._can_carry(own, family):
            return ""
        if family == 6:
            return "the node has no IPv6 address for the next hop"
        return "IPv6 next hops of IPv4 are not agreed on (RFC 8950)"

    def _can_carry(self, next_hop: str, family: int) -> bool:
        if next_hop == "self":
            return False
        return version(next_hop) == family or (family == 4 and self._extended_next_hop)

    @property
    def _own_asn(self) -> int:
        return self._peer.local_asn if self._peer.external else 0

    @property
    def sent(self) -> Mapping[str, Announcement | None]:
        """What ExaBGP announces, by prefix; None: with attributes that could not be read."""
        return self._sent

    @property
    def announced(self) -> int:
        """Number of prefixes that ExaBGP announces."""
        return len(self._sent)

    @property
    def _active(self) -> bool:
        return self._established and self._read
