"""The agent's BGP speaker: has ExaBGP announce the agent's prefixes, and reports the routes of peers.

All decisions are in :mod:`bgp.control`; here are the socket to the bridge, the clock and the configuration file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from bgp.announcement import Announcement
from bgp.bfd import settings as bfd
from bgp.control import Control, Held
from bgp.model import Peer, SpeakerConfig
from bgp.prefixes import PrefixSet, canonical
from bgp.render import render
from bgp.rib import PREFIX_LIMIT, Explained, ImportFilter, NextHops, Reach, Unresolved
from bgp.session import LimitState, PeerStatus
from bgp.sidecar import CONFIG, SOCKET
from bgp.trace import Traced
from felix_py.backoff import Backoff
from felix_py.files import replace_private
from felix_py.source_address import source_address
from felix_py.structured import structlog

_TICK = 1.0
_RECONNECT = (0.05, 1.0)
_FIRST_CONTACT = 1.0
_DELIVERY = 3.0
_NOT_IN_EFFECT = 15.0
_ASK, _GIVE_UP = 10, 30
"""Ticks without a word of ExaBGP, until it is asked for one, and until it does not count as running."""

_HUNG = "ExaBGP does not answer"
_ABSENT = "there is no ExaBGP; see whether the sidecar runs"
_OTHERS = "ExaBGP does not have the configured peers; see the sidecar's log"
_REWRITE = 5.0
_SLICE = 250
"""Prefixes decided in one turn of the event loop: some three milliseconds."""

_READ = 1 << 14
"""Bytes read in one turn: some 400 prefixes at most, five milliseconds."""

Logger = structlog.typing.FilteringBoundLogger
OnRoutes = Callable[[Mapping[str, NextHops]], None]
OnHeld = Callable[[Mapping[str, Held]], None]


class Speaker:
    """BGP for this node. Call all methods from the event loop that :meth:`run` runs on.

    Configuration, filter and announcements may be set at any time and in any order, also before :meth:`run`.
    Until the first :meth:`announce` nothing is announced, withdrawn or ended: peers keep the routes of the
    agent's last run.
    """

    def __init__(
        self, run_dir: Path, on_routes: OnRoutes, log: Logger, on_held: OnHeld = lambda _held: None
    ) -> None:
        """``run_dir`` is shared with the sidecar. ``on_routes`` gets each change of the best routes: prefix ->
        next hops, () for a withdrawn route. It is called on the loop, also from the methods below, and must only
        take note. ``on_held`` gets all peers that are held down, whenever that changes.
        """
        self._dir = run_dir
        self._on_routes = on_routes
        self._log = log
        self._on_held = on_held
        self._held: Mapping[str, Held] = {}
        self._control = Control()
        self._config: SpeakerConfig | None = None
        self._peers: tuple[Peer, ...] = ()
        self._ways: Mapping[str, NextHops] = {}
        self._text = ""
        self._late_at, self._unwritten = math.inf, ""
        self._config_due = asyncio.Event()
        self._bfd_wanted = asyncio.Event()
        self._in_sync = asyncio.Event()
        self._more = asyncio.Event()
        self._progress = asyncio.Condition()
        self._writer: asyncio.StreamWriter | None = None
        self._silent, self._hung = 0, False
        self.hangs = 0
        """How often ExaBGP has come to answer nothing."""
        self.hindrance = ""
        """Why ExaBGP has not what is configured, for people; empty: it has, or will in a moment."""

    # --- inputs ------------------------------------------------------------------------------------------

    def set_config(self, config: SpeakerConfig) -> None:
        """Set the peers and speaker settings."""
        self._config = config
        self._lead({**self._ways, **_ways(config)})
        self._adopt(config, self._reachable(config))

    def hold(self, held: Mapping[str, Held]) -> None:
        """Hold peers down as an earlier life of the agent has, before :meth:`set_config`."""
        for address, one in held.items():
            self._control.hold(address, one, time.monotonic())
        self._held = dict(self._control.held)

    def set_filter(self, *, within: Iterable[str], never: Iterable[str]) -> None:
        """Learn only prefixes inside one of ``within`` (the cluster's CIDRs) and inside none of ``never`` (this
        node's own pod CIDRs, Service CIDRs). Raises ValueError for a text that is no CIDR.
        """
        self._control.rib.set_filter(ImportFilter(PrefixSet(within), PrefixSet(never)))
        self._flush()

    def announce(self, announcements: Iterable[Announcement | str]) -> None:
        """Announce exactly these CIDRs, each to the peers of its family; a bare one has the default attributes.

        Raises ValueError for a prefix that is no CIDR.
        """
        whole = (Announcement(one) if isinstance(one, str) else one for one in announcements)
        self._control.announce([replace(one, prefix=canonical(one.prefix)) for one in whole])
        self._flush()

    def set_reach(self, reach: Reach) -> None:
        """Use only next hops that are reachable according to ``reach``; before the first call, all are used."""
        self._control.rib.set_reach(reach)
        self._flush()

    # --- state -------------------------------------------------------------------------------------------

    def routes(self) -> Mapping[str, NextHops]:
        """The best routes: prefix -> ECMP next hops."""
        return self._control.rib.best

    def priority(self, prefix: str) -> int:
        """The metric that import filters have set of a best route; 0: none."""
        return 0 if prefix in self._ways else self._control.rib.priorities.get(prefix, 0)

    def explain(self, prefix: str) -> list[Explained]:
        """Every path to a prefix, the best one first, and why the others are not the best. Raises ValueError."""
        return self._control.rib.explain(canonical(prefix))

    def trace(self, listener: Callable[[Traced], None] | None) -> None:
        """Have events told to a listener, on the loop, which must only take note; None: to nobody."""
        self._control.channel.trace = listener

    def announced(self) -> Mapping[str, Mapping[str, Announcement | None]]:
        """Peer -> what it is told, by prefix, of those whose session is up."""
        return self._control.announced()

    def refused(self) -> Mapping[str, Mapping[str, str]]:
        """Peer -> what it cannot be told, by prefix, and why, of those whose session is up."""
        return self._control.refused()

    def unresolved(self) -> Mapping[Unresolved, int]:
        """Next hops of accepted routes that this node cannot use -> number of prefixes."""
        return self._control.rib.unresolved

    @property
    def ignored(self) -> int:
        """Number of lines from ExaBGP that could not be parsed."""
        return self._control.channel.ignored

    def prefixes_without_next_hop(self) -> int:
        """Number of accepted prefixes without a next hop that this node can use."""
        return self._control.rib.prefixes_without_next_hop()

    def peers(self) -> list[PeerStatus]:
        """Every configured peer, including those that this node has no route to."""
        why = self.hindrance
        statuses = [
            one if one.established else replace(one, error=one.error or why)
            for one in self._control.peers(time.monotonic())
        ]
        known = {status.address for status in statuses}
        for peer in self._config.peers if self._config else ():
            if peer.key not in known:
                families = tuple(f"ipv{family} unicast" for family in peer.carried)
                held = self._control.held_reason(peer.key, time.monotonic())
                down = PeerStatus(
                    peer.key,
                    peer.asn,
                    False,
                    0.0,
                    0,
                    families,
                    held or "no route to it",
                    limit=peer.prefix_limit or PREFIX_LIMIT,
                    name=peer.name,
                    limit_state=LimitState.HELD_DOWN if held else LimitState.WITHIN,
                )
                statuses.append(down)
        return statuses

    @property
    def in_sync(self) -> bool:
        """Whether every peer has sent its whole table, or had time to: routes that are missing now are gone."""
        return self._in_sync.is_set()

    async def wait_in_sync(self) -> None:
        """Return once :attr:`in_sync` is true; it then stays true."""
        await self._in_sync.wait()

    async def delivered(self, seconds: float = _DELIVERY) -> bool:
        """Wait until ExaBGP has sent its updates, as before draining the node; returns False on a timeout."""
        try:
            async with asyncio.timeout(seconds):
                await self._answered()
                # `done` means queued. Queued updates are sent within a few turns of ExaBGP's loop, so wait until
                # the update counters stand still.
                before = None
                while (now := self._updates_sent()) != before or self._control.postponed:
                    before = now
                    await asyncio.sleep(0.05)
                    self._control.query_neighbors()
                    self._flush()
                    await self._answered()
        except TimeoutError:
            return False
        return self._writer is not None

    def _updates_sent(self) -> dict[str, int]:
        return {neighbor.peer: neighbor.updates_sent for neighbor in self._control.neighbors.values()}

    # --- running -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled; everything stays announced then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_connected())
            tasks.create_task(self._keep_time())
            tasks.create_task(self._keep_configured())
            tasks.create_task(self._keep_bfd())
            tasks.create_task(self._keep_deciding())

    async def _keep_connected(self) -> None:
        backoff = Backoff(*_RECONNECT, spread=0)
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._dir / SOCKET)
            except OSError:
                await asyncio.sleep(backoff.delay())
                continue
            backoff.reset()
            if not self._hung:
                self._log.info("attached to ExaBGP")
            self._writer, self._silent = writer, 0
            self._control.attached()
            try:
                await self._converse(reader)
            finally:
                self._writer, self._late_at = None, time.monotonic() + _NOT_IN_EFFECT
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            if self._hung:
                self._control.detached(time.monotonic(), _HUNG)
            else:
                self._control.detached(time.monotonic())
                self._log.warning("lost ExaBGP; routes stay for the restart time")
            await self._moved()

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            self._flush()
            while data := await reader.read(_READ):
                self._control.receive(data, time.monotonic())
                self._silent = 0
                if self._hung and self._control.channel.answered:  # the bridge alone repeats OPENs
                    self._hung = False
                    self._log.info("ExaBGP answers again")
                await self._moved()

    async def _keep_bfd(self) -> None:
        """Listen to the sidecar's BFD process; without it, sessions end by their hold time."""
        backoff = Backoff(*_RECONNECT, spread=0)
        while True:
            await self._bfd_wanted.wait()
            try:
                reader, writer = await asyncio.open_unix_connection(self._dir / bfd.SOCKET)
            except OSError:
                await asyncio.sleep(backoff.delay())
                continue
            backoff.reset()
            try:
                await self._hear_bfd(reader)
            finally:
                writer.close()
            self._control.bfd_unknown(time.monotonic())

    async def _hear_bfd(self, reader: asyncio.StreamReader) -> None:
        # ValueError: a line that does not end.
        with contextlib.suppress(OSError, ValueError):
            while line := await reader.readline():
                if report := bfd.decode(line):
                    self._control.bfd(report, time.monotonic())
                    await self._moved()

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            if self._config and self._peers != (peers := self._reachable(self._config)):
                self._adopt(self._config, peers)
            if not self._control.in_effect:
                self._control.query_neighbors()
            self._mind_silence()
            self._judge()
            await self._moved()

    def _mind_silence(self) -> None:
        """Ask an ExaBGP that says nothing; one that does not answer (it is stopped, or hangs) has no sessions.

        In ticks, not seconds: what came while this process stood still is not read yet.
        """
        if self._writer is None:
            return
        self._silent += 1
        if self._silent >= _GIVE_UP and self._control.channel.pending:
            self.hangs += not self._hung
            self._hung = True
            self._writer.transport.abort()
        elif self._silent >= _ASK and not self._control.channel.pending:
            self._control.probe()

    async def _keep_deciding(self) -> None:
        """Decide on the prefixes that were too many for one turn of the event loop."""
        while True:
            await self._more.wait()
            self._more.clear()
            await self._moved()
            await asyncio.sleep(0)

    async def _keep_configured(self) -> None:
        # Routes must be withdrawn from a peer that has left the configuration before ExaBGP forgets the peer.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CONTACT if (self._dir / SOCKET).exists() else 0):
                await self._answered()
        while True:
            await self._config_due.wait()
            self._config_due.clear()
            try:
                await self._write_config()
                self._unwritten = ""
            except OSError as error:  # a full disk, say: policy and local pods do not depend on it
                self._unwritten = str(error)
                self._log.error("cannot write ExaBGP's configuration; trying again", reason=str(error))
                await asyncio.sleep(_REWRITE)
                self._config_due.set()

    # --- configuration -----------------------------------------------------------------------------------

    def _reachable(self, config: SpeakerConfig) -> tuple[Peer, ...]:
        """The configured peers with their source addresses, without those held down and those without a route.

        A source address stays as long as the node has it or there is no other: a flapping link must not change
        sessions.
        """
        before = {peer.key: peer.source_address for peer in self._peers}
        free = (peer for peer in config.peers if not self._control.holds(peer))
        found = {peer: peer.source_address or source_address(peer, before) for peer in free}
        return tuple(replace(peer, source_address=source) for peer, source in found.items() if source)

    def _lead(self, ways: Mapping[str, NextHops]) -> None:
        """Have these routes to peers, and in their place none that is learned."""
        before, self._ways = self._ways, ways
        best = self._control.rib.best
        if changed := dict(before.items() ^ ways.items()):
            self._on_routes({prefix: ways.get(prefix, best.get(prefix, ())) for prefix in changed})

    def _adopt(self, config: SpeakerConfig, peers: tuple[Peer, ...]) -> None:
        self._peers = peers
        self._control.configure(config, peers, time.monotonic())
        if any(peer.bfd for peer in peers):
            self._bfd_wanted.set()
        else:
            self._bfd_wanted.clear()
        text = render(config, peers)
        if text != self._text:
            self._text, self._late_at = text, math.inf
            self._config_due.set()
        else:
            self._late_at = max(self._late_at, time.monotonic() + _NOT_IN_EFFECT)
            self._lead(_ways(config))
        self._flush()

    async def _write_config(self) -> None:
        text = self._text
        with contextlib.suppress(TimeoutError):
            await self._withdraw_from_leaving()
        replace_private(self._dir / CONFIG, text)
        self._late_at = time.monotonic() + _NOT_IN_EFFECT
        # A peer that leaves has been told by now.
        self._lead(_ways(self._config) if self._config else {})
        self._log.info("wrote ExaBGP's configuration", peers=[peer.key for peer in self._peers])

    async def _withdraw_from_leaving(self) -> None:
        if self._writer is None:
            return
        self._control.query_neighbors()
        self._flush()
        async with asyncio.timeout(_FIRST_CONTACT):
            await self._answered()
        if leaving := self._control.leaving():
            self._log.info("withdrawing from peers that leave", peers=leaving)
            self._control.retire(leaving)
            self._flush()
            await self.delivered()

    def _judge(self) -> None:
        """Set what hinders ExaBGP, and say it once."""
        found = ""
        if self._unwritten:
            found = f"ExaBGP's configuration cannot be written: {self._unwritten}"
        elif self._hung:
            found = _HUNG
        elif time.monotonic() > self._late_at and self._writer is None:
            found = _ABSENT if self._peers else ""
        elif time.monotonic() > self._late_at and not self._control.in_effect:
            found = _OTHERS
        if found and found != self.hindrance:
            self._log.warning(found)
        self.hindrance = found

    # --- plumbing ----------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send the control's output, log its notes and pass on changed routes."""
        changes = self._control.take(_SLICE)
        data = self._control.channel.data_to_send()
        if data and self._writer is not None and not self._writer.is_closing():
            self._writer.write(data)
        for note in self._control.channel.take_notes():
            bound = self._log.bind(peer=note.peer) if note.peer else self._log
            emit = bound.warning if note.warning else bound.info
            emit(note.text, **({"detail": note.detail} if note.detail else {}))
        if self._held != self._control.held:
            self._held = dict(self._control.held)
            self._on_held(self._held)
        if changes:
            self._on_routes({prefix: hops for prefix, hops in changes.items() if prefix not in self._ways})
        if self._control.rib.undecided:
            self._more.set()

    async def _moved(self) -> None:
        self._control.tick(time.monotonic())
        self._flush()
        if self._control.in_sync and not self._control.rib.undecided and not self._in_sync.is_set():
            self._log.info("in sync", routes=len(self._control.rib.best))
            self._in_sync.set()
        async with self._progress:
            self._progress.notify_all()

    async def _answered(self) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self._writer is not None and not self._control.channel.pending)


def _ways(config: SpeakerConfig) -> dict[str, NextHops]:
    """The routes to peers that no link of the node leads to (``reachableBy``)."""
    return {str(ipaddress.ip_network(p.address)): (p.reachable_by,) for p in config.peers if p.reachable_by}
