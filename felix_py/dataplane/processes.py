"""The tools that the agent runs: bounded in time and in what they may say; none outlives an agent that stops."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

MOST_OUTPUT = 256 << 20
"""Bytes of standard output. The rules of a node with ten thousand Services are a tenth of that."""

MOST_COMPLAINT = 64 << 10
"""Bytes of standard error that are kept; the rest is read and forgotten."""

_PIECE = 256 << 10


class TooMuch(Exception):
    """A program printed more than :data:`MOST_OUTPUT`."""


class Ended(Exception):
    """The agent stops: no program is run any more, and those that ran were killed."""


class Processes:
    """Those that run now. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes,
        env: Mapping[str, str],
        timeout: float,
        started: Callable[[int], None] = lambda _pid: None,
    ) -> tuple[int, bytes, bytes]:
        """Exit status, output and complaint of a program. ``started`` gets its pid before it has read anything.

        Raises:
            OSError: it cannot be run.
            TimeoutError: it took longer than ``timeout`` seconds, and was killed.
            TooMuch, Ended: see there.
        """
        pipe = subprocess.PIPE
        # A session of its own, so that what the program has started can be killed with it.
        with subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
        ) as process:
            try:
                self._add(process)
                started(process.pid)
                output, complaint = _converse(process, stdin, time.monotonic() + timeout)
            except BaseException:
                _kill(process)
                raise
            finally:
                with self._lock:
                    self._running.discard(process)
        if self._ended:
            raise Ended(f"{os.path.basename(argv[0])} was killed: the agent stops")
        return process.returncode, output, complaint

    def _add(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._ended:
                raise Ended("the agent stops")
            self._running.add(process)

    def end(self) -> list[str]:
        """Kill those that run, and run none from now on. Returns their names."""
        with self._lock:
            self._ended = True
            running = list(self._running)
            for process in running:
                _kill(process)
        return [os.path.basename(str(process.args[0])) for process in running]  # type: ignore[index]


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _converse(process: subprocess.Popen[bytes], stdin: bytes, deadline: float) -> tuple[bytes, bytes]:
    """Write all of stdin, read all that comes, and wait for the end."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        _start_writing(process.stdin, stdin, selector)
        selector.register(process.stdout, selectors.EVENT_READ, (output, MOST_OUTPUT))
        selector.register(process.stderr, selectors.EVENT_READ, (complaint, MOST_COMPLAINT))
        left = memoryview(stdin)
        while selector.get_map():
            ready = selector.select(_left(deadline))
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    left = _write(process.stdin, left, selector)
                elif not (piece := os.read(key.fd, _PIECE)):
                    selector.unregister(key.fileobj)
                else:
                    kept, most = key.data
                    kept += piece[: most - len(kept)]
            if len(output) == MOST_OUTPUT:
                raise TooMuch(f"it printed more than {MOST_OUTPUT >> 20} MB")
    try:
        process.wait(_left(deadline))
    except subprocess.TimeoutExpired:
        raise TimeoutError("timed out") from None
    return bytes(output), bytes(complaint)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _start_writing(pipe: IO[bytes], stdin: bytes, selector: selectors.BaseSelector) -> None:
    if stdin:
        os.set_blocking(pipe.fileno(), False)
        selector.register(pipe, selectors.EVENT_WRITE)
    else:
        pipe.close()


def _write(pipe: IO[bytes], left: memoryview, selector: selectors.BaseSelector) -> memoryview:
    """Write a piece; a program that does not want to read more has its reasons, and its exit status says so."""
    try:
        left = left[os.write(pipe.fileno(), left[:_PIECE]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:
        left = left[len(left) :]
    if not left:
        selector.unregister(pipe)
        pipe.close()
    return left
