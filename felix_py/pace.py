"""When to do something that is asked for again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

_SHARE = 10
"""After t seconds of work, nothing for 10 t: so it takes a tenth of one processor at most."""

_MOST = 60.0
"""Seconds that a gap grows to by that."""


@dataclass(slots=True)
class Pace:
    """Waits until nobody has asked for ``quiet`` seconds, but no longer than ``most`` after the first who did.

    Between two turns there are at least ``gap`` seconds, and more if it is much work. All times are seconds of
    one monotonic clock.
    """

    quiet: float
    most: float
    gap: float
    _first: float | None = None
    _last: float = 0.0
    _free: float = 0.0

    def ask(self, now: float) -> None:
        """Somebody wants it done."""
        if self._first is None:
            self._first = now
        self._last = now

    @property
    def due(self) -> float | None:
        """When to begin; None while nobody has asked."""
        if self._first is None:
            return None
        return max(min(self._last + self.quiet, self._first + self.most), self._free)

    def begun(self) -> None:
        """It is being done now: whoever asks from now on wants it done again."""
        self._first = None

    def ended(self, now: float, work: float) -> None:
        """It is done, and was so many seconds of work."""
        self._free = now + max(self.gap, min(_SHARE * work, _MOST))


class Paced:
    """Runs something at a pace for whoever asks."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Somebody wants it done."""
        self._pace.ask(time.monotonic())
        self._asked.set()

    async def run(self, act: Callable[[], Awaitable[float]]) -> None:
        """Until cancelled. ``act`` must not raise; it returns its seconds of work (not of waiting)."""
        while True:
            await self._until_due()
            self._pace.begun()
            work = await act()
            self._pace.ended(time.monotonic(), work)

    async def _until_due(self) -> None:
        while True:
            due = self._pace.due
            wait = None if due is None else due - time.monotonic()
            if wait is not None and wait <= 0:
                return
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._asked.wait()
