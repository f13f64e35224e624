"""Waiting for what others bring about: threads, callbacks, processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")
_LATE = 0.1
"""How much longer than needed a wait may take, as a part of itself: what is asked is often a program to start."""

_DEAR = 4
"""How many times as long as a look that took long is waited before the next: else asking is most of the work."""


def _rest(since: float, least: float, most: float) -> float:
    """Seconds until a condition that is waited for since then is looked at again."""
    return min(max((time.monotonic() - since) * _LATE, least), most)


async def until(condition: Callable[[], object], seconds: float = 60.0, pause: float | None = None) -> None:
    """Wait without holding up the loop; TimeoutError when the condition is not true in time.

    ``pause``: seconds between two looks, for what is measured; otherwise they grow with the time that it takes.
    """
    started = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - whoever brings it about knows nothing of us
            await asyncio.sleep(pause or _rest(started, 0.002, 0.05))


def eventually(probe: Callable[[], T], seconds: float = 10.0, pause: float | None = None) -> T:
    """Poll another process until the probe's answer is truthy; fail with the last one after that long.

    ``pause``: as for :func:`until`.
    """
    started = asked = time.monotonic()
    while not (answer := probe()):
        took = time.monotonic() - asked
        assert time.monotonic() - started < seconds, f"still {answer!r} after {seconds} s"
        time.sleep(pause or max(_rest(started, 0.01, 0.1), min(_DEAR * took, 1.0)))
        asked = time.monotonic()
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
