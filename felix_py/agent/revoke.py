"""Ends established connections that policy has come to deny.

The rules accept whatever belongs to a connection that conntrack knows. So once a change of policy is in the
kernel, or what somebody else had changed is right again, the connections that it may concern are looked up, the
oracle judges each one's first packet anew, and the entries of those that it denies are deleted: their next packet
is a new connection to the rules. All others are left alone.

Order: rules first, deletion after, so that nothing slips in between. What is judged is the state that the rules
were made of (:mod:`felix_py.agent.view`). Changes gather for a moment first: of a folder of policies that is
applied file by file, only the whole counts, since a connection that is ended cannot be given back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from felix_py import log
from felix_py.agent.flows import Flows
from felix_py.agent.judge import Judge
from felix_py.agent.view import ClusterView
from felix_py.backoff import Backoff
from felix_py.dataplane.interface import FlowTable
from felix_py.metrics import Metrics
from felix_py.plan.names import Fixed, parse_name
from felix_py.plan.static import SetNames
from felix_py.reconcile import leads_astray
from felix_py.records import Drift, DriftKind, Failure, Flow
from policy.ir import ChainId, Delta, SetId
from policy.model import Family, ObjectKey, Packet, Protocol

_NO_PORTS = cast("Protocol", "other")
"""A protocol that no policy can name, such as ICMP: rules with ports never match it."""

_SLICE = 0.001
"""Seconds that judging may hold the event loop; then everybody else has it for as long."""

_REST, _REST_MOST = 4, 5.0
"""After a look at the table there is none for so many times as long, but not for more than so many seconds."""

_RETRY = (1.0, 30.0)

_DECIDING = (DriftKind.HOOK, DriftKind.CHAIN, DriftKind.SET, DriftKind.MEMBER)
_MASQUERADING = {
    *("POSTROUTING", Fixed.POSTROUTING),
    *(name for names in map(SetNames.of, Family) for name in (names.pool, names.no_masquerade)),
}


@dataclass(frozen=True, slots=True)
class Quiet:
    """Seconds. A look at the table waits until nothing has changed for ``quiet``, but no longer than ``most``."""

    quiet: float = 0.5
    most: float = 2.0


@dataclass(slots=True)
class Concerned:
    """What a change of policy concerns: connections of ``addresses``, and those of endpoints on ``chains``
    (and sets).

    Addresses are mostly endpoints', but that of a pod elsewhere will do: whose
    membership in a set changes, its connections with endpoints of this node are concerned, and no others.
    ``everybody``: all endpoints.
    """

    addresses: set[str] = field(default_factory=set)
    chains: set[ChainId | SetId] = field(default_factory=set)
    everybody: bool = False

    def __bool__(self) -> bool:
        return bool(self.addresses or self.chains or self.everybody)

    def add(self, other: Concerned) -> None:
        """Both."""
        self.addresses |= other.addresses
        self.chains |= other.chains
        self.everybody |= other.everybody

    def note(self, delta: Delta, *, joining_matters: bool, known: Collection[str] | None) -> None:
        """Add what a change of compiled policy may turn from allowed into denied.

        ``joining_matters``: whether a new member of a set may mean a denial; NetworkPolicies only allow.
        ``known``: the endpoints' addresses that can have connections (None: any can); a pod that has just come
        has none.
        """
        self.chains.update(delta.chains)
        self.addresses.update(a for _, a in delta.classes if known is None or a in known)
        for peers, members in delta.members.items():
            if peers in delta.sets:
                continue  # a new set comes with a new or changed chain
            for member, present in members.items():
                if "/" in member:
                    self.chains.add(peers)
                elif joining_matters or not present:
                    self.addresses.add(member.partition(",")[0])

    def note_drift(self, drift: Iterable[Drift], standing: Collection[ChainId | SetId]) -> None:
        """Add what may have begun while rules or sets were not as they should be, whichever way they differed.

        ``standing``: the chains and sets that endpoints' policies stand on. All others are on everybody's way.
        Routes, links and settings decide nothing about policy; nor does masquerading.
        """
        for found in drift:
            if found.kind not in _DECIDING or found.name in _MASQUERADING:
                continue
            compiled = parse_name(found.name)
            if found.member and "/" not in found.member:
                self.addresses.add(found.member.partition(",")[0])
            elif compiled is not None and compiled in standing:
                self.chains.add(compiled)
            else:
                self.everybody = True


class Revoker:
    """Sees to it that no connection outlives its permission. :meth:`run` does the work, the rest only notes."""

    def __init__(
        self,
        view: ClusterView,
        chains_of: Callable[[ObjectKey], set[ChainId | SetId]],
        flows: Flows,
        host_addresses: Callable[[], frozenset[str]],
        metrics: Metrics,
        pace: Quiet | None = None,
        *,
        host_closed: bool = False,
    ) -> None:
        """``chains_of``: chains and sets that an endpoint's policy stands on. ``host_addresses`` may do I/O.

        ``host_closed``: see :class:`felix_py.agent.judge.Judge`.
        """
        self._host_closed = host_closed
        self._view = view
        self._chains_of = chains_of
        self._flows = flows
        self._host_addresses = host_addresses
        self._metrics = metrics
        self._pace = pace or Quiet()
        # Connections to the host may have begun when that was open; policy's own come with the first change.
        self._writing = Concerned(everybody=host_closed)
        self._due = Concerned()
        self._wake = asyncio.Event()
        self._changed = 0.0
        self._known: frozenset[str] | None = None
        self._log = log.get("revoke")

    # --- notes ---------------------------------------------------------------------------------------

    def collected(self, delta: Delta) -> None:
        """A change of policy is about to be written."""
        tiers = any(True for _ in self._view.cluster_policies())
        self._writing.note(delta, joining_matters=tiers, known=self._known)

    def mended(self, drift: Sequence[Drift]) -> None:
        """Others had changed what is ours, and the apply that just ended was to put it right."""
        standing = {chain for endpoint in self._view.endpoints() for chain in self._chains_of(endpoint.key)}
        self._writing.note_drift(drift, standing)

    def applied(self, failures: Iterable[Failure]) -> None:
        """An apply is done. What it could not write makes us look again after the next one."""
        self._known = self._view.endpoint_addresses()
        if not self._writing:
            return
        self._due.add(self._writing)
        if not any(map(leads_astray, failures)):
            self._writing = Concerned()
        self._note()

    def suspect(self, addresses: Collection[str]) -> None:
        """Some addresses may have connections that are not theirs."""
        self._due.addresses.update(addresses)
        self._note()

    def _note(self) -> None:
        self._changed = time.monotonic()
        self._wake.set()

    # --- work ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled. Nothing that goes wrong here is anybody else's trouble."""
        backoff = Backoff(*_RETRY, spread=0)
        while True:
            await self._wake.wait()
            await self._quiet()
            self._wake.clear()
            due, self._due = self._due, Concerned()
            started = time.monotonic()
            try:
                await self._pass(due)
                delay = 0.0
                backoff.reset()
            except Exception as error:
                self._metrics.flow_errors.inc()
                if isinstance(error, OSError):
                    self._log.error("cannot look for denied connections", reason=str(error))
                else:
                    self._log.exception("cannot look for denied connections")
                self._due.add(due)
                self._wake.set()
                delay = backoff.delay()
            seconds = time.monotonic() - started
            self._metrics.flow_pass_seconds.observe(seconds)
            await asyncio.sleep(delay or min(seconds * _REST, _REST_MOST))

    async def _quiet(self) -> None:
        """Let changes gather."""
        latest = time.monotonic() + self._pace.most
        while (left := min(self._changed + self._pace.quiet, latest) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)

    async def _pass(self, due: Concerned) -> None:
        """
        Raises:
            OSError: the kernel does not answer, or refused a deletion.
        """
        addresses = due.addresses | self._standing_on(due.chains)
        if due.everybody:
            addresses |= self._view.endpoint_addresses()
        if not addresses:
            return

        def look(table: FlowTable) -> tuple[list[Flow], frozenset[str]]:
            return table.flows(addresses), self._host_addresses()

        flows, host = await self._flows.call(look)
        denied = await self._denied(flows, host)
        if not denied:
            self._log.debug("no connection is denied", looked_at=len(flows))
            return
        deleted, error = await self._flows.call(lambda table: table.delete(denied))
        self._metrics.flows_revoked.inc(len(deleted))
        for flow in deleted:
            self._log.debug("ended a connection that policy denies", flow=str(flow))
        self._log.info("ended connections that policy denies", connections=len(deleted), looked_at=len(flows))
        if error is not None:
            raise error

    def _standing_on(self, chains: set[ChainId | SetId]) -> set[str]:
        """Addresses of the endpoints whose policy stands on any of these chains and sets."""
        return {
            address
            for endpoint in self._view.endpoints()
            if chains and not chains.isdisjoint(self._chains_of(endpoint.key))
            for address in endpoint.addresses
        }

    async def _denied(self, flows: Sequence[Flow], host: frozenset[str]) -> list[Flow]:
        """Those that policy denies now. A connection that belongs to another one shares its fate."""
        parents = {flow.parent for flow in flows if flow.parent}
        by_tuple = {flow.original: flow for flow in flows if flow.original in parents} if parents else {}
        judge = Judge(self._view, host, host_closed=self._host_closed)
        denied = []
        pause = time.monotonic() + _SLICE
        for flow in flows:
            parent = by_tuple.get(flow.parent, flow) if flow.parent else flow
            packet = Packet(parent.source, parent.destination, parent.protocol or _NO_PORTS, parent.port)
            if not judge.allows(packet):
                denied.append(flow)
            if time.monotonic() > pause:
                await asyncio.sleep(_SLICE)
                pause = time.monotonic() + _SLICE
        return denied
