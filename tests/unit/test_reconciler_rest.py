"""When the next apply begins: at once where it is quiet, and few times in a storm, whether it writes or not."""

from __future__ import annotations

import asyncio
import time

import pytest

from felix_py import reconcile
from policy.model import Pod
from tests.support.waiting import until
from tests.unit.test_agent_network import Rig, lease

LONG = 3.0
"""As a rest: what waits for it is plain to see."""


async def applied(rig: Rig, before: int) -> float:
    """Seconds until an apply has begun since."""
    started = time.monotonic()
    await until(lambda: rig.kernel.applies != before, pause=0.0005)
    return time.monotonic() - started


async def test_after_an_apply_that_wrote_nothing_the_next_change_hardly_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pod comes without an address, which changes nothing; a moment later it has one, and had to wait."""

    monkeypatch.setattr(reconcile, "_REST", LONG)
    async with Rig() as rig:
        await rig.network.enforce(lease())
        rig.reconciler._applied_at -= LONG  # it was quiet since
        before = rig.kernel.applies
        rig.pending.note()
        await applied(rig, before)
        await asyncio.sleep(0.005)
        before = rig.kernel.applies
        rig.facts.upsert(Pod("shop", "web", "u1", "n1"))
        assert await applied(rig, before) < LONG / 2


async def test_after_one_that_wrote_it_rests_and_who_waits_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "_REST", LONG)
    async with Rig() as rig:
        await rig.network.enforce(lease())
        before = rig.kernel.applies
        rig.pending.note()
        await asyncio.sleep(LONG / 3)
        assert rig.kernel.applies == before
        started = time.monotonic()
        await rig.network.enforce(lease("c2", "10.1.0.3", created=2.0))
        assert time.monotonic() - started < LONG / 2


async def test_many_who_wait_share_few_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comes a moment after the one before, as the interfaces of a burst of ADDs are made."""
    monkeypatch.setattr(reconcile, "_GATHER", (1e6, LONG))
    async with Rig() as rig:
        await rig.network.enforce(lease())
        rig.reconciler._applied_at -= LONG  # it was quiet since
        before, started, waiting = rig.kernel.applies, time.monotonic(), []
        for number in range(10):
            one = lease(f"c{number + 2}", f"10.1.0.{number + 2}", created=number + 2.0)
            waiting.append(asyncio.ensure_future(rig.network.enforce(one)))
            await asyncio.sleep(0.01)
        await waiting[0]
        assert time.monotonic() - started < LONG
        await asyncio.gather(*waiting)
        assert rig.kernel.applies - before == 2


async def test_a_storm_that_changes_nothing_ends_in_few_applies() -> None:
    async with Rig() as rig:
        await rig.network.enforce(lease())
        before, started, events = rig.kernel.applies, time.monotonic(), 0
        while time.monotonic() - started < 1.0:
            rig.pending.note()
            events += 1
            await asyncio.sleep(0.001)
        seconds = time.monotonic() - started
        assert events > 20
        # One each 50 ms, and the first few that come after 0, 1, 2, 4 ms and so on.
        assert rig.kernel.applies - before <= seconds / 0.05 + 10
