"""From thread to loop: in order, in batches, and never more than bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from felix_py.datastore.bridge import Bridge, Closed


class Taker:
    """What came out, batch by batch."""

    def __init__(self, expected: int) -> None:
        self.batches: list[list[int]] = []
        self.done = asyncio.Event()
        self._expected = expected

    def __call__(self, items: Sequence[int]) -> None:
        self.batches.append(list(items))
        if sum(map(len, self.batches)) >= self._expected:
            self.done.set()


async def test_order_is_kept_and_batches_are_bounded() -> None:
    taker = Taker(5000)
    bridge = Bridge[int](asyncio.get_running_loop(), taker)

    def work() -> None:
        for start in range(0, 5000, 500):
            bridge.put(range(start, start + 500))

    async with asyncio.timeout(10):
        await asyncio.to_thread(work)
        await taker.done.wait()
    assert [item for batch in taker.batches for item in batch] == list(range(5000))
    assert max(map(len, taker.batches)) <= 128


async def test_thread_waits_while_the_loop_is_behind() -> None:
    taker = Taker(40)
    bridge = Bridge[int](asyncio.get_running_loop(), taker, limit=10)
    accepted: list[int] = []
    full = threading.Event()

    def work() -> None:
        for item in range(40):
            if item == 10:
                full.set()
            bridge.put([item])
            accepted.append(item)

    thread = threading.Thread(target=work)
    thread.start()
    # The loop is busy with this very test: nothing is taken before the first await.
    assert full.wait(10)
    thread.join(0.05)
    assert thread.is_alive()
    assert len(accepted) == 10
    async with asyncio.timeout(10):
        await taker.done.wait()
    await asyncio.to_thread(thread.join)
    assert len(accepted) == 40


async def test_what_arrives_while_the_loop_is_busy_comes_as_one_batch() -> None:
    taker = Taker(50)
    bridge = Bridge[int](asyncio.get_running_loop(), taker)
    thread = threading.Thread(target=lambda: [bridge.put([item]) for item in range(50)])
    thread.start()
    thread.join()
    async with asyncio.timeout(10):
        await taker.done.wait()
    assert len(taker.batches) == 1


async def test_close_frees_a_waiting_thread_and_drops_the_rest() -> None:
    taker = Taker(1)
    bridge = Bridge[int](asyncio.get_running_loop(), taker, limit=1)
    ended = threading.Event()

    def work() -> None:
        bridge.put([1])
        with pytest.raises(Closed):
            bridge.put([2])
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    bridge.close()
    assert ended.wait(10) or not thread.is_alive()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0)
    assert taker.batches == []


def test_closed_loop_closes_the_bridge() -> None:
    loop = asyncio.new_event_loop()  # which never runs
    bridge = Bridge[int](loop, lambda _items: None)
    loop.close()
    with pytest.raises(Closed):
        bridge.put([1])
