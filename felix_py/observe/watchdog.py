"""The watchdog of the event loop: a process whose loop stands still ends, so that it is started again.

While the loop stands still nobody is served: no CNI call, no probe (``/livez`` does not answer), no apply. A
thread of its own watches, since nothing on the loop could. It says in the log where every thread stands, which a
kill by the kubelet would lose. Where the interpreter itself is held up, so that no thread runs, the kubelet's
liveness probe remains.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from felix_py import log

LIMIT = 30.0
"""Seconds that one turn of the loop may take."""

STUCK = 5
"""Exit code after the loop has stood still. The kernel's state stays, as always."""

_FIRST = 10
"""Turns that are not judged: one of the first reads the kernel, which takes as long as the tools need."""

_LOOKS = 10
"""Looks in the time of the limit."""

_ALARM = 5
"""Seconds until the kernel ends the process (SIGALRM), if even the last words do not get out."""


class StandsStill:
    """Whether a loop stands still, as one thread sees it that looks at regular times. No I/O.

    Only time counts in which the looking thread ran itself: a look that is late counts as one that is not. So a
    process that was stopped (SIGSTOP) or a machine that was suspended is not taken for a loop that hangs.
    """

    def __init__(self, limit: float, every: float) -> None:
        """``limit``: seconds of one turn; ``every``: seconds between two looks."""
        self._limit = limit
        self._every = every
        self._turn = -1
        self._looked = 0.0
        self._seconds = 0.0

    def look(self, turn: int, busy: bool, now: float) -> float:
        """Returns the seconds that the loop has stood still, if that is the limit or more; else 0.

        ``turn``: number of the loop's turn; ``busy``: whether it is in one, not waiting for events; ``now``:
        seconds of a clock that never goes back.
        """
        passed, self._looked = min(now - self._looked, 2 * self._every), now
        if turn != self._turn or turn < _FIRST or not busy:
            self._turn, self._seconds = turn, 0.0
            return 0.0
        self._seconds += passed
        return self._seconds if self._seconds >= self._limit else 0.0


class Watchdog:
    """Watches one loop, from :meth:`start` to the end of the process."""

    def __init__(self, turn: Callable[[], tuple[int, bool]], limit: float = LIMIT) -> None:
        """``turn`` returns what :meth:`StandsStill.look` takes, of the main thread's loop, to any thread."""
        self._turn = turn
        self._every = limit / _LOOKS
        self._found = StandsStill(limit, self._every)
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def _run(self) -> None:
        while True:
            time.sleep(self._every)
            if seconds := self._found.look(*self._turn(), time.monotonic()):
                _end(seconds)


def _end(seconds: float) -> NoReturn:
    """Say where all threads stand, and end the process, whatever hangs."""
    try:
        signal.alarm(_ALARM)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "".join(traceback.format_stack(frame)[-20:]) if frame else ""
        log.get("watchdog").error(
            "the event loop stands still: the agent ends, to be started again; what is in the kernel stays",
            seconds=round(seconds, 1),
            stack=stack[-4000:],
        )
        log.flush()
        faulthandler.dump_traceback(all_threads=True)
    finally:
        os._exit(STUCK)
