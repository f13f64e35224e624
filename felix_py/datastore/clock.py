"""The clock of the datastore's threads: real in the agent, simulated in tests."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock, in seconds."""

    def now(self) -> float:
        """Monotonic time with an arbitrary zero."""

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Wait until ``stop`` is set, or ``seconds`` have passed; returns whether it is set."""


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        return stop.wait(seconds)
