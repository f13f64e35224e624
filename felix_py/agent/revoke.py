"""Ends established connections that policy now denies.

The rules accept every packet of a connection that conntrack knows. So once a change of policy is in the kernel,
or drift has been repaired, the connections that it may concern are looked up, the oracle judges each one's first
packet anew, and the entries of denied ones are deleted: their next packet is a new connection to the rules.

Entries are deleted after the rules are written, so that no connection begins in between. They are judged by the
state that the rules were made of (:mod:`felix_py.agent.view`). Changes gather for a moment first: a folder of
policies that is applied file by file counts as a whole, since an ended connection cannot be restored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from msgspec import Struct

from felix_py import log
from felix_py.agent.concerned import Concerned, Due
from felix_py.agent.flows import Flows
from felix_py.agent.judge import Judge
from felix_py.agent.view import ClusterView
from felix_py.backoff import Backoff
from felix_py.dataplane.protocols import FlowTable
from felix_py.metrics import Metrics
from felix_py.reconcile import leads_astray
from felix_py.records import Drift, Failure, Flow
from policy.ir import ChainId, Delta, SetId
from policy.model import ObjectKey, Packet, Protocol

_NO_PORTS = cast("Protocol", "other")
"""A protocol that policy cannot name, such as ICMP: rules with ports never match it."""

_SLICE = 0.001
"""Seconds that judging may hold the event loop; then other tasks have it for as long."""

_REST, _REST_MOST = 4, 5.0
"""The rest after a pass: a multiple of its duration, and the limit in seconds."""

_RETRY = (1.0, 30.0)


class Quiet(Struct, frozen=True):
    """Seconds. A pass waits until nothing has changed for ``quiet``, but no longer than ``most``."""

    quiet: float = 0.5
    most: float = 2.0


class Revoker:
    """Ends connections that policy denies. :meth:`run` does the work, the other methods only note."""

    def __init__(
        self,
        view: ClusterView,
        chains_of: Callable[[ObjectKey], set[ChainId | SetId]],
        flows: Flows,
        due: Due,
        host_addresses: Callable[[], frozenset[str]],
        metrics: Metrics,
        pace: Quiet | None = None,
        *,
        host_closed: bool = False,
    ) -> None:
        """``chains_of``: chains and sets that an endpoint's policy depends on. ``host_addresses`` may do I/O.

        ``host_closed``: see :class:`felix_py.agent.judge.Judge`.
        """
        self._host_closed = host_closed
        self._view = view
        self._chains_of = chains_of
        self._flows = flows
        self._host_addresses = host_addresses
        self._metrics = metrics
        self._pace = pace or Quiet()
        # Connections to the host may date from a time when it was open; those that policy concerns are noted by
        # the first change.
        self._writing = Concerned(everybody=host_closed)
        self._due = due
        self._known: frozenset[str] | None = None
        self._log = log.get("revoke")

    def collected(self, delta: Delta) -> None:
        """Note a change of policy that is about to be written."""
        self._writing.note(delta.tightened, self._known)

    def mended(self, drift: Sequence[Drift]) -> None:
        """Note the drift that the apply that has just ended was to repair."""
        standing = {chain for endpoint in self._view.endpoints() for chain in self._chains_of(endpoint.key)}
        self._writing.note_drift(drift, standing)

    def applied(self, failures: Iterable[Failure]) -> None:
        """Make noted changes due after an apply; after failures they are due again after the next one."""
        self._known = self._view.endpoint_addresses()
        if not self._writing:
            return
        self._due.add(self._writing)
        if not leads_astray(failures):
            self._writing = Concerned()

    async def run(self) -> None:
        """Run until cancelled. Errors are logged, and the pass is retried."""
        backoff = Backoff(*_RETRY, spread=0)
        while True:
            await self._due.noted()
            await self._quiet()
            due = self._due.take()
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
                delay = backoff.delay()
            seconds = time.monotonic() - started
            self._metrics.flow_pass_seconds.observe(seconds)
            await asyncio.sleep(delay or min(seconds * _REST, _REST_MOST))

    async def _quiet(self) -> None:
        latest = time.monotonic() + self._pace.most
        while (left := min(self._due.changed + self._pace.quiet, latest) - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)

    async def _pass(self, due: Concerned) -> None:
        """Raises OSError if the kernel does not answer, or refused a deletion."""
        addresses = due.addresses | self._standing_on(due.chains)
        if due.everybody:
            addresses |= self._view.endpoint_addresses()
        if not addresses:
            return

        def look(table: FlowTable) -> tuple[list[Flow], frozenset[str]]:
            flows = table.flows(addresses)
            return flows, self._host_addresses() if flows else frozenset()

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
        """Addresses of the endpoints whose policy depends on any of these chains and sets."""
        return {
            address
            for endpoint in self._view.endpoints()
            if chains and not chains.isdisjoint(self._chains_of(endpoint.key))
            for address in endpoint.addresses
        }

    async def _denied(self, flows: Sequence[Flow], host: frozenset[str]) -> list[Flow]:
        """The flows that policy denies now. A RELATED connection is judged by its parent."""
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
