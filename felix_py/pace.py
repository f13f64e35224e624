"""Pacing of an action that is requested again and again: debounced, and bounded in its share of a processor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from msgspec import Struct

_SHARE = 10
"""The gap after t seconds of work is 10 t, so the action takes a tenth of one processor at most."""

_MOST = 60.0
"""Limit of that gap, in seconds."""


class Pace(Struct):
    """The action is due ``quiet`` seconds after the last request, but at most ``most`` after the first.

    Between two actions there are at least ``gap`` seconds, and more after much work. All times are seconds of one
    monotonic clock.
    """

    quiet: float
    most: float
    gap: float
    _first: float | None = None
    _last: float = 0.0
    _free: float = 0.0

    def ask(self, now: float) -> None:
        """Note a request."""
        if self._first is None:
            self._first = now
        self._last = now

    @property
    def due(self) -> float | None:
        """When to begin; None without a request."""
        if self._first is None:
            return None
        return max(min(self._last + self.quiet, self._first + self.most), self._free)

    def begun(self) -> None:
        """The action begins: requests from now on are for the next one."""
        self._first = None

    def ended(self, now: float, work: float) -> None:
        """The action has ended and took ``work`` seconds of processing."""
        self._free = now + max(self.gap, min(_SHARE * work, _MOST))


_RARELY = 3.0
_LITTLE = 500
"""What is done for ever has a gap of 3 s, or of 500 t after t seconds of work: a 500th of one processor."""


async def sparingly(act: Callable[[], Awaitable[float]]) -> None:
    """Run an action again and again until cancelled, with gaps so long that it costs next to nothing.

    ``act`` returns its seconds of processor time; after an OSError it is tried again.
    """
    work = 0.0
    while True:
        await asyncio.sleep(max(_RARELY, min(_LITTLE * work, _MOST)))
        with suppress(OSError):
            work = await act()


class Paced:
    """Runs an action on request, at a pace."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Request the action."""
        self._pace.ask(time.monotonic())
        self._asked.set()

    async def run(self, act: Callable[[], Awaitable[float]]) -> None:
        """Run until cancelled. ``act`` must not raise; it returns its seconds of work (not of waiting)."""
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
