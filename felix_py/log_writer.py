"""Writes log lines to a descriptor whose reader may stop, die or be full, without blocking callers.

A dedicated thread writes from a bounded queue. Lines that do not fit or cannot be written are dropped and
counted, and a line reports their number once lines flow again.
"""

from __future__ import annotations

import collections
import os
import select
import threading
import time
from collections.abc import Callable

MOST_BYTES = 1 << 20
"""Size of the queue."""

KEPT_BYTES = 256 << 10
"""Size of the newest lines that are kept for :meth:`LineWriter.recent`."""

_LONGEST = 64 << 10
"""Bytes of one line at most."""

_PATIENCE = 0.5
"""Seconds between two polls of a full pipe that another process has made non-blocking."""


class LineWriter:
    """Takes lines from any thread and writes them in order."""

    def __init__(self, fd: int, said_again: Callable[[int], str], most: int = MOST_BYTES) -> None:
        """``said_again`` renders the line that reports a number of dropped lines."""
        self._fd = fd
        self._said_again = said_again
        self._most = most
        self._lines: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._kept: collections.deque[bytes] = collections.deque()
        self._kept_size = 0
        self.lost = 0
        """Lines that were dropped."""
        self._unsaid = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forked)

    def write(self, text: str) -> None:
        """Queue one line, given without its newline."""
        line = text.encode(errors="backslashreplace")[:_LONGEST] + b"\n"
        with self._changed:
            self._keep(line)
            if self._size + len(line) > self._most:
                self._drop()
                return
            self._lines.append(line)
            self._size += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify()

    def recent(self) -> bytes:
        """The newest lines, oldest first, also those that were dropped."""
        with self._changed:
            return b"".join(self._kept)

    def _keep(self, line: bytes) -> None:
        self._kept.append(line)
        self._kept_size += len(line)
        while self._kept_size > KEPT_BYTES:
            self._kept_size -= len(self._kept.popleft())

    def flush(self, seconds: float = 1.0) -> None:
        """Return once the queue is empty, or after so many seconds without progress."""
        with self._changed:
            before = self._size + 1
            while 0 < self._size < before:
                before = self._size
                self._changed.wait(seconds)

    def _drop(self) -> None:
        self.lost += 1
        self._unsaid += 1

    def _forked(self) -> None:
        """Reset a forked child, which has no writer thread; the queued lines are its parent's."""
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
        """Write a whole line, blocking as long as the reader does. Returns False if it cannot be written."""
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # another process has made the shared pipe non-blocking
                select.select([], [self._fd], [], _PATIENCE)
            except OSError:
                time.sleep(0.01)  # a full disk, a closed pipe: no reason to spin
                return False
        return True
