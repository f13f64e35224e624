"""Waiting for what others bring about: threads, callbacks, processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], object], seconds: float = 60.0, pause: float = 0.002) -> None:
    """Wait without holding up the loop; TimeoutError when the condition is not true in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - whoever brings it about knows nothing of us
            await asyncio.sleep(pause)


def eventually(probe: Callable[[], T], seconds: float = 10.0, pause: float = 0.02) -> T:
    """Poll another process until the probe's answer is truthy; fail with the last one after that long."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        assert time.monotonic() < deadline, f"still {answer!r} after {seconds} s"
        time.sleep(pause)
    return answer


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run something that ends only by being cancelled, for as long as the context lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
