"""Runs the controllers while this agent leads, and takes part in the election while there is anything to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from felix_py import log
from felix_py.agent.controllers.gone_nodes import AFFINITIES, GoneNodes
from felix_py.agent.controllers.load_balancers import LoadBalancers
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.elector import Elector, identity, rank
from felix_py.config import AgentConfig
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.kinds import IPAM_BLOCKS
from felix_py.datastore.leases import Leases
from felix_py.datastore.load_balancers import LOAD_BALANCERS
from felix_py.layout import LEASE
from felix_py.metrics import Metrics

_ANSWER = 5.0
"""Seconds for an answer on the Lease: half of the time in which it must be renewed."""

_DEFECT = 30.0

Run = Callable[[], Coroutine[Any, Any, None]]


class Elected:
    """The election and the controllers. On the event loop only."""

    def __init__(
        self, elector: Elector, controllers: Sequence[Run], pools: DeclaredPools, metrics: Metrics
    ) -> None:
        """``controllers`` run until cancelled."""
        self._elector = elector
        self._controllers = controllers
        self._pools = pools
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._log = log.get("controllers")
        pools.on_change(self._changed.set)
        metrics.leader.set(0)

    async def run(self) -> None:
        """Until cancelled. All Nodes and Namespaces must be known."""
        while True:
            await self._pools_are(there=True)
            async with _beside(self._lead()), _beside(self._elector.run()):
                await self._pools_are(there=False)

    async def _pools_are(self, *, there: bool) -> None:
        while not (self._pools.any if there else self._pools.listed and not self._pools.any):
            self._changed.clear()
            await self._changed.wait()

    async def _lead(self) -> None:
        while True:
            await self._elector.leading.wait()
            self._metrics.leader.set(1)
            tasks = [asyncio.create_task(self._keep(run)) for run in self._controllers]
            try:
                await self._elector.lost.wait()
            finally:
                self._metrics.leader.set(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, run: Run) -> None:
        """A defect of one controller must end neither the agent nor the other."""
        while True:
            try:
                await run()
            except Exception:
                self._log.exception("a controller failed")
            await asyncio.sleep(_DEFECT)


def elected(config: AgentConfig, cluster: Cluster, pools: DeclaredPools, metrics: Metrics) -> Elected:
    """This agent's part in what one agent does for the cluster."""
    nodes = cluster.store.nodes.records
    leases = Leases(cluster.api, config.namespace, LEASE, _ANSWER)
    elector = Elector(
        leases, identity(config.node_name), lambda: rank(config.node_name, (name for _, name in nodes))
    )
    balancers = LoadBalancers(
        cluster.api,
        cluster.store,
        pools,
        elector,
        lambda: cluster.followed(LOAD_BALANCERS),
        cluster,
        metrics,
        foreign=config.bgp_foreign_annotations,
    )
    gone = GoneNodes(cluster.api, cluster.store, elector, lambda: cluster.followed(IPAM_BLOCKS, AFFINITIES))
    return Elected(elector, (balancers.run, gone.run), pools, metrics)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have ``work`` run beside what the context does. Its failure ends that."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
