"""Stalls of the event loop: each turn that takes too long is counted, and some are logged.

During a turn no CNI call or health probe is served, so long work belongs into threads or several turns. The time
between two calls of ``select`` is measured, so that the loop is not woken for this.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

STALL = 0.1
"""Seconds from which a turn counts."""

_QUIET = 30.0
"""Seconds between two log lines."""

Turn = Callable[[float, float], None]
"""Called with the seconds that a turn took, and the seconds of CPU time that the loop's thread used in it."""


class WatchedSelector(selectors.DefaultSelector):
    """Reports turns that took longer than :data:`STALL`."""

    def __init__(self, on_stall: Turn) -> None:
        super().__init__()
        self._on_stall = on_stall
        self._woken: float | None = None
        self._used = 0.0
        self._turns = 0
        self._busy = False

    def turn(self) -> tuple[int, bool]:
        """The number of the present turn, and whether it still goes on. Any thread may ask."""
        return self._turns, self._busy

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._woken is not None and (seconds := time.monotonic() - self._woken) > STALL:
            self._on_stall(seconds, time.thread_time() - self._used)
        self._busy = False
        ready = super().select(timeout)
        self._turns += 1
        self._busy = True
        self._used = time.thread_time()
        self._woken = time.monotonic()
        return ready


class Stalls:
    """Counts and logs stalls. ``observe`` is the metric's, ``say`` logs."""

    def __init__(self, observe: Callable[[float], None], say: Callable[..., None]) -> None:
        self._observe = observe
        self._say = say
        self._said = float("-inf")
        self._number = 0
        self._longest = 0.0

    def __call__(self, seconds: float, processor: float) -> None:
        self._observe(seconds)
        self._number += 1
        self._longest = max(self._longest, seconds)
        if (now := time.monotonic()) - self._said < _QUIET:
            return
        self._say(
            "the event loop stood still",
            times=self._number,
            longest=round(self._longest, 3),
            seconds=round(seconds, 3),
            processor=round(processor, 3),
        )
        self._said, self._number, self._longest = now, 0, 0.0
