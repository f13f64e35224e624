"""An API server that comes back: the first kind that gets through takes all the others along."""

from __future__ import annotations

import asyncio
import threading

import pytest

from felix_py.datastore.client import Api
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.kinds import CLUSTER_POLICY_KINDS, OWN_KINDS
from tests.support import faults
from tests.support.fakeapi import NAMESPACES, NODES, PATIENCE, POLICIES, Exchange, FakeApi, Fault
from tests.support.waiting import until
from tests.support.watching import configuration

NEVER = 3600.0
TOGETHER = Timing(answer=PATIENCE, silence=PATIENCE, retry=(NEVER, NEVER), lost=(NEVER, NEVER))
"""What waits for its own time, or for its turn, is not seen again."""

OTHER_KINDS = 1 + len(CLUSTER_POLICY_KINDS) + len(OWN_KINDS)
"""Pods, and those of custom resources."""

FAULTS: dict[str, Fault] = {"reset": faults.reset} | {
    str(code): faults.refuse(code) for code in (401, 403, 500, 502, 503, 504)
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_first_kind_that_gets_through_wakes_the_others(fault: str) -> None:
    """Whatever the server, or a proxy in front of it, says while it is not ready."""
    returns = threading.Event()

    def until_it_returns(_exchange: Exchange) -> bool:
        assert returns.wait(PATIENCE)
        return False

    with FakeApi() as server:
        for path in (NAMESPACES, NODES, POLICIES):
            server.fault("*", FAULTS[fault], path=path)
        server.fault("*", until_it_returns, times=OTHER_KINDS)
        cluster = Cluster(Api(lambda: configuration(server)), node_name="node-1", timing=TOGETHER)
        (outage,) = {
            watched.source._retry._outage for watched in cluster._sources if isinstance(watched.source, Reflector)
        }
        cluster.start()
        try:
            await until(lambda: len(outage._waiting) == 3, PATIENCE)
            returns.set()
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
        finally:
            await cluster.stop()
