"""Threads for the event loop. What waits together is done together, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from felix_py.threads import Batcher, Worker


async def test_what_gathers_during_a_batch_is_the_next_batch() -> None:
    batches: list[list[int]] = []
    started, go_on = threading.Event(), threading.Event()

    def run(jobs: Sequence[int]) -> list[int | Exception]:
        batches.append(list(jobs))
        started.set()
        go_on.wait(5)
        return [ValueError(f"job {job}") if job == 3 else job * 10 for job in jobs]

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
    assert batches == [[1], [2, 3, 4], [5]]


async def test_a_batch_that_fails_fails_for_each_and_the_next_one_runs() -> None:
    go_on = threading.Event()

    def run(jobs: Sequence[int]) -> list[int | Exception]:
        go_on.wait(60)
        if 2 in jobs:
            raise OSError("disk full")
        return list(jobs)

    batcher: Batcher[int, int] = Batcher("test", run)
    calls = [asyncio.create_task(batcher.submit(job)) for job in (1, 2, 3)]
    await asyncio.sleep(0)
    go_on.set()
    first, *rest = await asyncio.gather(*calls, return_exceptions=True)
    assert first in (1, rest[0])  # alone, if the thread was quick enough
    assert [str(outcome) for outcome in rest] == ["disk full"] * 2
    assert await batcher.submit(4) == 4
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


async def test_a_worker_does_one_job_after_the_other_and_raises_what_one_raises() -> None:
    worker, done = Worker("test"), list[int]()

    def job(number: int) -> int:
        done.append(number)
        return 10 // number

    calls = [worker.submit(lambda number=number: job(number)) for number in (2, 0, 5)]  # type: ignore[misc]
    worker.post(lambda: done.append(7))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == (5, 2)
    assert isinstance(outcomes[1], ZeroDivisionError)
    worker.close()
    assert done == [2, 0, 5, 7]


async def test_a_job_that_was_cancelled_before_its_turn_is_not_done() -> None:
    worker, go_on, done = Worker("test"), threading.Event(), list[int]()
    first = worker.submit(lambda: go_on.wait(60))
    cancelled, last = worker.submit(lambda: done.append(1)), worker.submit(lambda: done.append(2))
    cancelled.cancel()
    go_on.set()
    await asyncio.gather(first, last)
    assert done == [2]
    worker.close()


async def test_closing_waits_for_what_was_given_and_takes_no_more() -> None:
    worker, done = Worker("test"), list[int]()
    worker.post(lambda: done.append(1))
    worker.close()
    worker.close()
    assert done == [1]
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(lambda: done.append(2))


def test_nobody_is_told_once_the_loop_is_closed() -> None:
    go_on = threading.Event()

    async def leave() -> Worker:
        worker = Worker("test")
        worker.submit(lambda: go_on.wait(60))
        return worker

    worker = asyncio.run(leave())  # a coroutine would not outlive its loop
    go_on.set()
    worker.close()
