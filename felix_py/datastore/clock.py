"""The clock that waiting is measured with."""

from __future__ import annotations

import threading
import time
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
