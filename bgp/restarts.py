"""When a child process that has ended, or could not be started, is started again."""

from __future__ import annotations

_FIRST, _MOST = 0.2, 10.0
_STEADY = 30.0
"""Seconds after which a process that runs has been started well."""


class Restarts:
    """Delays that double. Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.due = 0.0
        """When the process may be started."""
        self.delay = _FIRST
        """From the next failure on."""
        self._started = 0.0

    def started(self, now: float) -> None:
        """The process runs from now on."""
        self._started = now

    def runs(self, now: float) -> None:
        """The process still runs."""
        if now > self._started + _STEADY:
            self.delay = _FIRST

    def failed(self, now: float) -> None:
        """The process has ended, or could not be started."""
        self.due = now + self.delay
        self.delay = min(_MOST, self.delay * 2)
