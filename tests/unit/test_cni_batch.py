"""Group commit: what waits together is done together, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from felix_py.cni.batch import Batcher


def test_what_gathers_during_a_batch_is_the_next_batch() -> None:
    batches: list[list[int]] = []
    started, go_on = threading.Event(), threading.Event()

    def run(jobs: Sequence[int]) -> list[int | Exception]:
        batches.append(list(jobs))
        started.set()
        go_on.wait(5)
        return [ValueError(f"job {job}") if job == 3 else job * 10 for job in jobs]

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher("test", run)
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.to_thread(started.wait, 5)
        rest = [asyncio.create_task(batcher.submit(job)) for job in (2, 3, 4)]
        await asyncio.sleep(0)
        go_on.set()
        assert await first == 10
        assert await asyncio.gather(*rest[::2]) == [20, 40]
        with pytest.raises(ValueError, match="job 3"):
            await rest[1]
        assert await batcher.submit(5) == 50
        batcher.close()

    asyncio.run(main())
    assert batches == [[1], [2, 3, 4], [5]]


async def test_a_batch_that_fails_fails_for_each_and_the_next_one_runs() -> None:
    fail = [True]

    def run(jobs: Sequence[int]) -> list[int | Exception]:
        if fail.pop() if fail else False:
            raise OSError("disk full")
        return list(jobs)

    batcher: Batcher[int, int] = Batcher("test", run)
    for outcome in await asyncio.gather(batcher.submit(1), batcher.submit(2), return_exceptions=True):
        assert isinstance(outcome, OSError)
    assert await batcher.submit(3) == 3
    batcher.close()


async def test_a_caller_that_went_away_does_not_disturb_the_others() -> None:
    go_on = threading.Event()

    def run(jobs: Sequence[int]) -> list[int | Exception]:
        go_on.wait(5)
        return list(jobs)

    batcher: Batcher[int, int] = Batcher("test", run)
    gone, stays = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await stays == 2
    assert gone.cancelled()
    batcher.close()
