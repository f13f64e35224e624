"""Log lines on their way to a descriptor whose reader may stop, die or be full: nobody who logs waits for it.

A thread of its own writes. What it has not come to write is bounded; what does not fit, or cannot be written, is
dropped and counted, and a line says so when lines flow again.
"""

from __future__ import annotations

import collections
import os
import select
import threading
import time
from collections.abc import Callable

MOST_BYTES = 1 << 20
"""Of lines that wait to be written."""

_LONGEST = 64 << 10
"""Bytes of one line."""

_PATIENCE = 0.5
"""Seconds between two looks whether a full pipe of others that does not block can be written to."""


class LineWriter:
    """Takes lines from any thread. Writes in the order in which they came."""

    def __init__(self, fd: int, said_again: Callable[[int], str], most: int = MOST_BYTES) -> None:
        """``said_again``: the line that says how many were dropped."""
        self._fd = fd
        self._said_again = said_again
        self._most = most
        self._lines: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._lost = 0
        self._unsaid = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forked)

    @property
    def lost(self) -> int:
        """Lines that were dropped."""
        return self._lost

    def write(self, text: str) -> None:
        """Queue one line, without its end."""
        line = text.encode(errors="backslashreplace")[:_LONGEST] + b"\n"
        with self._changed:
            if self._size + len(line) > self._most:
                self._drop()
                return
            self._lines.append(line)
            self._size += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def flush(self, seconds: float = 1.0) -> None:
        """Return once all is written, or after so many seconds without any of it being written."""
        with self._changed:
            before = self._size + 1
            while 0 < self._size < before:
                before = self._size
                self._changed.wait(seconds)

    def _drop(self) -> None:
        self._lost += 1
        self._unsaid += 1

    def _forked(self) -> None:
        """A child has no such thread, and what waits is its parent's."""
        self._changed = threading.Condition()
        self._lines.clear()
        self._size = 0
        self._thread = None

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                line = self._lines[0]
            written = self._write(line)
            with self._changed:
                self._lines.popleft()
                if not written:
                    self._drop()
                elif self._unsaid:
                    notice = self._said_again(self._unsaid).encode() + b"\n"
                    self._unsaid = 0
                    self._lines.appendleft(notice)
                    self._size += len(notice)
                self._size -= len(line)
                self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        """Blocks as long as the reader does. False: it cannot be written."""
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # somebody else has made the pipe that we share non-blocking
                select.select([], [self._fd], [], _PATIENCE)
            except OSError:
                time.sleep(0.01)  # a full disk, a closed pipe: no reason to spin
                return False
        return True
