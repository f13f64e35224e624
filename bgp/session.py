"""One BGP session: its state machine and the effects on the peer's routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto

from bgp import events, protocol
from bgp.announcement import Announcement
from bgp.bfd import CEASE_BFD_DOWN
from bgp.channel import Channel
from bgp.decision import Path, Source
from bgp.model import Peer
from bgp.notification import explained, words
from bgp.outgoing import Outgoing
from bgp.prefixes import FAMILIES, is_link_local, version
from bgp.rib import Rib

SETTLE = 10.0
"""Seconds after which the table of a peer that sends no end-of-RIB counts as complete."""

_TEARDOWN_AGAIN = 5.0
_MALFORMED_AGAIN = 600.0


class State(Enum):
    """How much of its table the peer has sent. All but DOWN are Established (RFC 4271 8.2.2)."""

    DOWN = auto()
    LOADING = auto()
    """Established, and no end-of-RIB yet."""
    LOADING_REFRESH = auto()
    """The same, and the peer has begun a route refresh (RFC 7313)."""
    COMPLETE = auto()
    """The whole table has been sent."""
    REFRESHING = auto()
    """The whole table has been sent, and the peer repeats it (RFC 7313)."""
    FAILED = auto()
    """BFD has lost the peer: none of its routes is used, and ExaBGP is to end the session."""


class Input(Enum):
    """Input of the state machine. The clock supplies END_OF_RIB for a peer that never sends it."""

    UP = auto()
    DOWN = auto()
    END_OF_RIB = auto()
    REFRESH_BEGIN = auto()
    REFRESH_END = auto()
    FAILED = auto()


TRANSITIONS: Mapping[tuple[State, Input], State] = {
    **{(state, Input.UP): State.LOADING for state in State},
    **{(state, Input.DOWN): State.DOWN for state in State if state is not State.DOWN},
    **{(state, Input.FAILED): State.FAILED for state in State if state not in (State.DOWN, State.FAILED)},
    (State.LOADING, Input.END_OF_RIB): State.COMPLETE,
    (State.LOADING, Input.REFRESH_BEGIN): State.LOADING_REFRESH,
    (State.LOADING_REFRESH, Input.END_OF_RIB): State.REFRESHING,
    (State.LOADING_REFRESH, Input.REFRESH_BEGIN): State.LOADING_REFRESH,
    (State.LOADING_REFRESH, Input.REFRESH_END): State.LOADING,
    (State.COMPLETE, Input.REFRESH_BEGIN): State.REFRESHING,
    (State.REFRESHING, Input.REFRESH_BEGIN): State.REFRESHING,
    (State.REFRESHING, Input.REFRESH_END): State.COMPLETE,
}
"""Other inputs are ignored: events can be lost, and RFC 7313 4 wants an end without a begin ignored."""


class LimitState(StrEnum):
    """How a peer stands to its limit of prefixes."""

    WITHIN = "within"
    NEAR = "near"
    """It has 80 % of them or more."""
    HELD_DOWN = "held-down"
    """It had more, and its session stays down for a time."""


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer, for people. ``since``: seconds in that state; ``error``: why it went or stays down.

    ``address``: :attr:`bgp.model.Peer.key`.
    ``name``: of the BGPPeer that declares it. ``received`` and ``announced``: prefixes; ``limit``: of those
    received. ``refused``: number of prefixes that cannot be announced in this session, and ``refusal``, why.
    """

    address: str
    asn: int
    established: bool
    since: float
    received: int
    families: tuple[str, ...]
    error: str = ""
    limit: int = 0
    name: str = ""
    announced: int = 0
    bfd: str = ""
    """State of its BFD session; empty: it has none, or nothing is known of it."""
    limit_state: LimitState = LimitState.WITHIN
    refused: int = 0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Bfd:
    """What BFD says of a peer. ``state``: for people. ``failed_at``: when the path failed, None: it has not.

    ``independent``: the peer's BFD outlives a restart of its BGP (the C bit of RFC 5880).
    """

    state: str
    failed_at: float | None
    independent: bool


@dataclass(frozen=True, slots=True)
class Retained:
    """Routes of an ended session stay in use (RFC 4724) ``until`` a time; ``own``: for our own restart."""

    until: float
    own: bool


class Session:
    """One peer: its state, its routes across sessions, and the announcements to it."""

    def __init__(self, peer: Peer, rib: Rib, channel: Channel, now: float) -> None:
        self.state = State.DOWN
        self.out = Outgoing(peer)
        self._rib = rib
        self._channel = channel
        self._since = now
        self._router_id = "0.0.0.0"
        self._restart: events.GracefulRestart | None = None
        self._complete_at = 0.0
        self._untold: set[int] = set()
        self._refreshing: set[int] = set()
        self._retained: Retained | None = None
        self._unusable: set[str] = set()
        self._unusable_until = 0.0
        self._teardown_at = 0.0
        self._malformed_until = 0.0
        self._error = self._said = ""
        self._bfd: Bfd | None = None
        self._refusals: Mapping[int, str] = {}
        self.peer = peer
        self._describe()

    @property
    def established(self) -> bool:
        """RFC 4271's Established, as far as ExaBGP goes."""
        return self.state is not State.DOWN

    @property
    def usable(self) -> bool:
        """Whether routes that come by it may be used."""
        return self.state not in (State.DOWN, State.FAILED)

    @property
    def told(self) -> bool:
        """Whether the peer has sent its whole table, and all of it could be used."""
        return self.state in (State.COMPLETE, State.REFRESHING) and not self._unusable

    @property
    def identity(self) -> events.Identity:
        """Identifies the session."""
        return self.peer.key, self.peer.source_address, self.peer.asn, self.peer.local_asn

    def status(self, now: float) -> PeerStatus:
        """The session, for people."""
        refused = self.out.refused
        return PeerStatus(
            address=self.peer.key,
            asn=self.peer.asn,
            established=self.usable,
            since=max(0.0, now - self._since),
            received=self._rib.count(self.peer.key),
            families=tuple(f"ipv{family} unicast" for family in self.peer.carried),
            error="" if self.usable else self._error,
            name=self.peer.name,
            announced=self.out.announced if self.established else 0,
            limit=self._rib.limit(self.peer.key),
            bfd=self._bfd.state if self._bfd else "",
            refused=len(refused),
            refusal="; ".join(sorted(set(refused.values()))),
        )

    def configure(self, peer: Peer) -> None:
        """Set the peer's settings; its key never changes."""
        self.peer = peer
        if peer.bfd is None:
            self._bfd = None
        self._channel.send(*self.out.configure(peer))
        self._describe()

    @property
    def router_id(self) -> str:
        """The peer's BGP identifier, as of its last OPEN."""
        return self._router_id

    def negotiated(self, families: Collection[int], *, extended_next_hop: bool) -> None:
        """Set what the peer agrees on: families, and whether IPv4 prefixes may have IPv6 next hops (RFC 8950)."""
        self._channel.send(*self.out.negotiated(families, extended_next_hop=extended_next_hop))
        before, self._refusals = self._refusals, self.out.refusals
        for family, reason in self._refusals.items():
            if before.get(family) != reason:
                self._note(f"IPv{family} prefixes cannot be announced", reason, warning=True)

    def want(self, announcements: Mapping[str, Announcement]) -> None:
        """Announce what is of the session's families, by prefix, and nothing else."""
        self._channel.send(*self.out.want(announcements))

    def change(self, changes: Mapping[str, Announcement | None]) -> None:
        """Change some of what is wanted; None: withdraw."""
        self._channel.send(*self.out.change(changes))

    def scoped(self, path: Path) -> Path:
        """The path with the interface of its next hop, if that is link-local: ``fe80::1%eth0``."""
        if not self.peer.interface or not is_link_local(path.next_hop):
            return path
        return replace(path, next_hop=f"{path.next_hop}%{self.peer.interface}")

    def receive(self, event: events.Event, now: float) -> None:
        """Handle an event of this session."""
        match event:
            case events.Update():
                self._update(event)
            case events.Open():
                self._router_id, self._restart = event.router_id, event.restart
                self.negotiated(event.families, extended_next_hop=event.extended_next_hop)
                self._describe()
            case events.MalformedUpdate() if now >= self._malformed_until:
                # RFC 7606, 8: said, but a peer must not fill the log.
                self._malformed_until = now + _MALFORMED_AGAIN
                self._note("malformed attributes (RFC 7606)", event.what, warning=True)
            case events.Up():
                self.up(now)
            case events.Down():
                self.down(event.reason, now)
            case events.EndOfRib():
                self._untold.discard(event.family)
                if not self._untold:
                    self._advance(Input.END_OF_RIB)
            case events.Refresh(begin=True):
                if self._advance(Input.REFRESH_BEGIN):
                    self._refreshing.add(event.family)
                    self._rib.doubt(self.peer.key, (event.family,))
            case events.Refresh():
                self._unusable = {p for p in self._unusable if version(p) != event.family}
                self._refreshing.discard(event.family)
                if not self._refreshing:
                    self._advance(Input.REFRESH_END)
            case events.Notified():
                self._said = event.text
                self._note(f"NOTIFICATION {words(event.code, event.subcode)}", event.text, warning=True)

    def up(self, now: float) -> None:
        """The session came up."""
        self._advance(Input.UP)
        self._since, self._error = now, ""
        self._begin()
        self._complete_at = now + (self.peer.max_restart_time if self._restart else SETTLE)
        # Routes of an earlier session must be announced again in this one.
        self._rib.doubt(self.peer.key)
        # RFC 4724 4.2: unless the peer says that it kept its forwarding state, the routes kept for it are
        # dropped. That is for the peer's restart; across our own (4.1) everything stays until its end-of-RIB.
        forwarding = self._restart.forwarding if self._restart else {}
        if self._retained and not self._retained.own:
            self._keep([family for family, kept in forwarding.items() if kept])
        if self._retained:
            self._retained = Retained(now + self.peer.max_restart_time, self._retained.own)
        self._note("up")
        self._channel.send(*self.out.up())

    def take_over(self, neighbor: events.Neighbor, now: float) -> None:
        """Adopt a session that was up before: its end-of-RIB may be past, or of a young one still to come.

        What it has :meth:`negotiated` is known.
        """
        self._advance(Input.UP)
        self._since, self._error = now - neighbor.age, ""
        self._begin()
        self._complete_at = now + max(0.0, SETTLE - neighbor.age)
        self._router_id = neighbor.router_id
        self._describe()
        self._mind_bfd(now)

    def tell_bfd(self, bfd: Bfd | None, now: float) -> None:
        """What BFD says of the path to the peer; None: nothing, from now on."""
        self._bfd = bfd if self.peer.bfd else None
        self._mind_bfd(now)

    def down(self, reason: str, now: float) -> None:
        """The session ended, or could not come up."""
        failed = self.state is State.FAILED
        error, self._said = explained(reason, self._said), ""
        self._error = self._error if failed else error
        if not self._advance(Input.DOWN):
            return
        self._since = now
        self._unusable.clear()
        self.out.down()
        # RFC 4724 4.2: keep the routes if the peer announced that it would, but not after a NOTIFICATION.
        notified = reason.startswith(("notification sent", "notification received"))
        if failed:
            self._drop()
        elif "shutting down" in reason:
            self._retain(now + self.peer.max_restart_time, own=True)
        elif self._restart and not notified:
            self._retain(now + self._restart.time, own=False)
            self._keep(self._restart.forwarding)
        else:
            self._drop()
        self._note("down", self._error, warning=True)

    def detached(self, now: float, reason: str) -> None:
        """Nothing is heard of ExaBGP: all routes stay, as for a speaker that restarts itself."""
        if self._advance(Input.DOWN):
            self._since, self._error = now, reason
        self.out.down()
        self.out.forget()
        self._retain(now + self.peer.max_restart_time, own=True)

    def tick(self, now: float) -> None:
        """Handle timers."""
        if self.state is State.FAILED and now >= self._teardown_at:
            self._tear_down(now)
        self._channel.send(*self.out.tick(now))
        if now >= self._complete_at:
            self._advance(Input.END_OF_RIB)
        if now >= self._unusable_until:
            self._unusable.clear()
        if self._retained and now >= self._retained.until:
            self._note("stale routes removed", warning=True)
            if self.established:
                self._retained = None
                self._rib.confirm(self.peer.key)
            else:
                self._drop()

    def confirm(self) -> None:
        """Remove routes that the peer has not repeated, if its table is complete."""
        if self.state is State.COMPLETE:
            self._retained = None
            self._rib.confirm(self.peer.key)

    def ask_again(self, unusable: set[str], now: float) -> None:
        """Request a route refresh for prefixes that ExaBGP's table has without a usable next hop.

        Its table keeps the last next hop listed, which for IPv6 is the link-local one, unusable without an
        interface; an update has both. Until it arrives, these routes stay, and we are not in sync.
        """
        self._unusable, self._unusable_until = unusable, now + SETTLE
        families = sorted({version(prefix) for prefix in unusable})
        self._channel.send(*(protocol.route_refresh(self.peer.key, family) for family in families))

    def _advance(self, by: Input) -> bool:
        """Change state by the table; false if it has no transition."""
        after = TRANSITIONS.get((self.state, by))
        self.state = after or self.state
        return after is not None

    def _mind_bfd(self, now: float) -> None:
        """RFC 5882, 10.2 and 4.3: a path that fails ends the session, and no graceful restart keeps its routes.

        Unless the session has ended already: the peer restarts, and its BFD perhaps with it, so that its failure
        means nothing, but for a peer that says (the C bit) that it would not. A session that came up after the
        failure is none of its concern, nor is one whose BFD never came up (4.4).
        """
        if self._bfd is None or self._bfd.failed_at is None:
            return
        if self.established and self._since <= self._bfd.failed_at and self._advance(Input.FAILED):
            self._error, self._since = "BFD down", now
            self._unusable.clear()
            self.out.down()
            self._drop()
            self._note("BFD down", warning=True)
            self._tear_down(now)
        elif self._retained and self._bfd.independent:
            self._drop()
            self._note("BFD down during graceful restart, routes removed", warning=True)

    def _tear_down(self, now: float) -> None:
        self._teardown_at = now + _TEARDOWN_AGAIN
        self._channel.send(protocol.teardown(self.peer.key, CEASE_BFD_DOWN))

    def _update(self, event: events.Update) -> None:
        if self.state is State.FAILED:
            return
        self._unusable.difference_update(n.prefix for n in event.withdrawn)
        self._unusable.difference_update(prefix for prefix, _ in event.announced)
        for prefix, path_id in event.withdrawn:
            self._rib.withdraw(event.peer, prefix, path_id)
        for prefix, path in event.announced:
            if version(prefix) in self.peer.carried:
                self._rib.announce(event.peer, prefix, self.scoped(path))

    def _begin(self) -> None:
        """Nothing of the peer's table has been told yet."""
        self._untold = {*self.out.families}
        self._refreshing.clear()
        self._unusable.clear()

    def _retain(self, until: float, *, own: bool) -> None:
        self._rib.doubt(self.peer.key)
        # Stale routes do not get more time when the session, or ExaBGP, fails once more.
        self._retained = Retained(min(until, self._retained.until) if self._retained else until, own)

    def _keep(self, families: Collection[int]) -> None:
        """Of the routes that are kept for the peer's restart, drop those of all other families."""
        self._rib.drop(self.peer.key, [family for family in FAMILIES if family not in families])
        if not families:
            self._retained = None

    def _drop(self) -> None:
        self._retained = None
        self._rib.drop(self.peer.key)

    def _describe(self) -> None:
        peer = self.peer
        self._rib.set_source(
            Source(
                address=peer.key,
                router_id=self._router_id,
                local_asn=peer.local_asn,
                local_address=peer.source_address,
                external=peer.external,
                allowed_own_asns=peer.allowed_own_asns,
                client=bool(peer.cluster_id),
                filters=peer.filters,
                prefix_limit=peer.prefix_limit,
            )
        )

    def _note(self, text: str, detail: str = "", *, warning: bool = False) -> None:
        self._channel.note(text, self.peer.key, detail, warning=warning)
