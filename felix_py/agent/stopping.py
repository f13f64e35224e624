"""The end of the agent: requested by a signal, and over within ten seconds whatever hangs.

:mod:`felix_py.agent.main` has its order. Here a thread, which gets the signal even if the event loop is stuck,
kills tools that do not end, and ends the process when its time is up. The kernel's alarm (SIGALRM) backs it up.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from felix_py import log

_TOOLS = 6.0
"""Seconds until tools are killed."""

_LAST = 9.0
"""Seconds until the process ends, orderly or not."""

_ALARM = 10
"""Seconds until the kernel ends the process (SIGALRM)."""

HUNG = 3
"""Exit code after an end that was not orderly. The kernel's state stays, as always."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """The request to stop, and the guard of its time limits. One per process, made in the main thread."""

    def __init__(self, end_tools: Callable[[], list[str]], say: Callable[[str], None]) -> None:
        """``end_tools`` kills running tools and returns their names; ``say`` logs without blocking for long."""
        self._end_tools = end_tools
        self._say = say
        self._loop = asyncio.get_running_loop()
        self.asked = asyncio.Event()
        """Set when the agent is to stop. On the event loop only."""

        self._over = threading.Event()
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._guard, name="stopping", daemon=True)
        self._thread.start()
        # The interpreter writes to the pipe inside the real signal handler, whatever the main thread is doing.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number in SIGNALS:
            signal.signal(number, _noted)

    def begin(self) -> None:
        """Start the time limits for an end without a signal."""
        os.write(self._write, b"\0")

    def over(self) -> None:
        """End the guard after an orderly end; signals are ignored from now on."""
        signal.set_wakeup_fd(-1)
        self._over.set()

    def _guard(self) -> None:
        select.select([self._read], [], [])
        started = time.monotonic()
        signal.alarm(_ALARM)
        try:
            self._loop.call_soon_threadsafe(self.asked.set)
        except RuntimeError:
            return  # the loop is closed: all is over
        if self._over.wait(_TOOLS):
            return
        for name in self._end_tools():
            self._say(f"{name} does not come to an end: killed, because the agent stops")
        if self._over.wait(started + _LAST - time.monotonic()):
            return
        self._say(f"did not come to an orderly end in {_LAST:.0f} seconds; leaving everything as it is")
        log.flush()
        os._exit(HUNG)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """The signal's number is in the pipe already."""
