"""How long to wait before the next try, and the clock that waiting is measured with."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time as the reflectors see it. All values are seconds."""

    def now(self) -> float:
        """A time that never goes back; its zero means nothing."""

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait, but no longer than until ``stop`` is set; returns whether it is."""


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """``time.monotonic()``."""
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait on the event itself, so that stopping is immediate."""
        return stop.wait(seconds)


class Backoff:
    """Delays that double from ``first`` to ``most`` seconds, each spread by half to both sides.

    The spread keeps thousands of agents from coming back to a restarted API server in step.
    """

    def __init__(
        self, first: float, most: float, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._first = first
        self._most = most
        self._uniform = uniform
        self._next = first

    def reset(self) -> None:
        """The last try went well: start from ``first`` again."""
        self._next = self._first

    def delay(self, at_least: float = 0.0) -> float:
        """Seconds to wait now. ``at_least``: the server's own wish (Retry-After), which is never cut short."""
        delay = self._next * self._uniform(0.5, 1.5)
        self._next = min(self._most, self._next * 2)
        return max(delay, at_least * self._uniform(1.0, 1.2))
