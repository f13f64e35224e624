"""Exponential back-off before the next try, and token buckets that limit a rate."""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class Backoff:
    """Delays that double from ``first`` to ``most`` seconds, each spread by ``spread`` of it to both sides.

    The spread keeps thousands of agents from coming back to a restarted API server in step.
    """

    def __init__(self, first: float, most: float, *, spread: float = 0.5) -> None:
        self._first = first
        self._most = most
        self._spread = spread
        self._next = first

    def reset(self) -> None:
        """Start from ``first`` again, after a successful try."""
        self._next = self._first

    def delay(self, at_least: float = 0.0) -> float:
        """Seconds to wait now. ``at_least``: the server's Retry-After, which is never cut short."""
        delay = self._next * random.uniform(1 - self._spread, 1 + self._spread)
        self._next = min(self._most, self._next * 2)
        return max(delay, at_least * random.uniform(1.0, 1.2))


class TokenBucket:
    """``burst`` tokens at once, then ``rate`` a second."""

    __slots__ = ("_at", "_burst", "_clock", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def take(self) -> bool:
        """Take a token; False if there is none."""
        taken = self.wait() == 0
        self._tokens -= taken
        return taken

    def wait(self) -> float:
        """Seconds until the next token."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._tokens) / self._rate)
