"""The end of the reconciler: whoever waits for it hears so, and an apply that hangs holds nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from felix_py.cni.network import NetworkError
from felix_py.reconcile import NotApplied
from tests.support.waiting import until
from tests.unit.test_agent_network import Rig, lease


@asynccontextmanager
async def freed(rig: Rig) -> AsyncIterator[None]:
    """However the test ends, no thread hangs."""
    try:
        yield
    finally:
        rig.kernel.free.set()


@pytest.mark.parametrize("hangs", [False, True])
async def test_a_del_and_an_add_under_way_are_told(hangs: bool) -> None:
    rig = Rig()
    cut: list[bool] = []
    rig.reconciler._patience = 0.1 if hangs else 60
    rig.reconciler._abandon = lambda: cut.append(True) or rig.kernel.free.set()
    async with rig, freed(rig):
        await rig.network.enforce(lease())
        before = rig.kernel.applies
        rig.kernel.free.clear()
        rig.pending.note()
        await until(lambda: rig.kernel.applies != before)
        release = asyncio.create_task(rig.network.release(lease()))  # waits for the next apply
        enforce = asyncio.create_task(rig.network.enforce(lease("c2", "10.1.0.3")))
        check = asyncio.create_task(rig.network.problems(lease("c2", "10.1.0.3")))
        await until(lambda: rig.reconciler._calls and len(rig.reconciler._waiters) >= 2)
        if not hangs:
            asyncio.get_running_loop().call_later(0.01, rig.kernel.free.set)
        started = time.monotonic()
        rig.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rig.task
        assert time.monotonic() - started < 10
        for waiting in (release, enforce):
            with pytest.raises(NetworkError, match="stopping"):
                await waiting
        assert bool(cut) == hangs
        with pytest.raises((asyncio.CancelledError, NetworkError)):
            await check
        # And whoever comes later does not wait at all.
        with pytest.raises(NotApplied, match="stopping"):
            await rig.reconciler.settled()
        with pytest.raises(NetworkError, match="stopping"):
            await rig.network.problems(lease("c2", "10.1.0.3"))


async def test_those_whose_apply_is_under_way_are_told_too() -> None:
    async with Rig() as rig, freed(rig):
        before = rig.kernel.applies
        rig.kernel.free.clear()
        waiting = asyncio.create_task(rig.reconciler.settled())
        await until(lambda: rig.kernel.applies != before)
        rig.task.cancel()
        asyncio.get_running_loop().call_later(0.01, rig.kernel.free.set)
        with pytest.raises(NotApplied, match="stopping"):
            await waiting
