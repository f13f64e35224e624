"""Conntrack for the event loop: long operations on the table run in threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from msgspec import Struct

from felix_py import log
from felix_py.dataplane.protocols import FlowTable
from felix_py.metrics import Metrics
from felix_py.threads import Batcher, Worker

T = TypeVar("T")


class _Forget(Struct, frozen=True):
    addresses: frozenset[str]


class _Look(Struct, frozen=True):
    networks: tuple[str, ...]


class Flows:
    """Two threads, so that a released address never waits behind a look for denied connections."""

    def __init__(
        self,
        table: FlowTable,
        releasing: FlowTable,
        metrics: Metrics,
        on_kept: Callable[[Collection[str]], None] = lambda _addresses: None,
    ) -> None:
        """``releasing``: the second thread's table, for :meth:`forget` and :meth:`busy`; one thread has a table.

        ``on_kept`` is called with the addresses whose connections could not be deleted.
        """
        self._table = table
        self._releasing = releasing
        self._metrics = metrics
        self._worker = Worker("flows")
        self._releases: Batcher[_Forget | _Look, set[str]] = Batcher("flows-release", self._work)
        self._log = log.get("flows")
        self._on_kept = on_kept

    async def call(self, work: Callable[[FlowTable], T]) -> T:
        """Run ``work`` with the table in its thread. Raises OSError as :class:`FlowTable`'s methods do."""
        return await self._worker.submit(lambda: work(self._table))

    async def forget(self, addresses: Collection[str]) -> None:
        """Delete every connection of some addresses; concurrent calls share one dump of the table.

        Never raises: an address is released all the same, and the failure is counted.
        """
        try:
            await self._releases.submit(_Forget(frozenset(addresses)))
        except OSError as error:
            self._metrics.flow_errors.inc()
            self._log.error("cannot delete a pod's connections", addresses=list(addresses), reason=str(error))
            self._on_kept(addresses)

    async def busy(self, networks: Collection[str]) -> set[str]:
        """See :meth:`FlowTable.busy`. Raises OSError as that does."""
        return await self._releases.submit(_Look(tuple(networks)))

    def close(self) -> None:
        """Wait for the work under way."""
        self._releases.close()
        self._worker.close()

    def _work(self, jobs: Sequence[_Forget | _Look]) -> Sequence[set[str] | Exception]:
        if addresses := {address for job in jobs if isinstance(job, _Forget) for address in job.addresses}:
            self._metrics.flows_released.inc(self._releasing.forget(addresses))
        return [self._busy(job.networks) if isinstance(job, _Look) else set() for job in jobs]

    def _busy(self, networks: tuple[str, ...]) -> set[str] | Exception:
        try:
            return self._releasing.busy(networks)
        except OSError as error:  # no reason for the deletions of the same batch to fail
            return error
