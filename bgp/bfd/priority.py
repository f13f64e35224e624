"""Real-time priority for a process that has to be in time, as long as it costs little."""

from __future__ import annotations

import os

_LOOK = 1.0
_MOST = 0.5
"""Share of a core."""


def take() -> bool:
    """Take real-time priority, if this process may: on a busy host, packets leave in time only with it."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        return False
    return True


def give_back() -> None:
    """Be a process like any other."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Cost:
    """What the process takes of a core.

    Whoever floods it with packets must not have the host's other processes wait: so it gives its priority back
    once it takes more for a second than many sessions would.
    """

    def __init__(self, now: float) -> None:
        self._looked_at, self._used = now, 0.0

    def is_too_much(self, now: float, used: float) -> bool:
        """Whether it was, in the last second or longer; ``used``: all CPU time until now, in seconds."""
        passed = now - self._looked_at
        if passed < _LOOK:
            return False
        share = (used - self._used) / passed
        self._looked_at, self._used = now, used
        return share > _MOST
