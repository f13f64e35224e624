"""Runs the agent's tools, bounded in time and output; none outlives an agent that stops."""

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
"""Bytes of standard output. The rules of a node with ten thousand Services take a tenth of that."""

MOST_COMPLAINT = 64 << 10
"""Bytes of standard error that are kept; the rest is read and discarded."""

_PIECE = 256 << 10


class TooMuch(Exception):
    """A program printed more than :data:`MOST_OUTPUT`."""


class Ended(Exception):
    """The agent stops: running programs were killed, and no other is run."""


class Processes:
    """The running tools. Any thread may call."""

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
        """Exit status, standard output and error of a program. ``started`` gets its pid before it reads stdin.

        Raises:
            OSError: it cannot be run.
            TimeoutError: it took longer than ``timeout`` seconds, and was killed.
            TooMuch, Ended: see there.
        """
        pipe = subprocess.PIPE
        # A session of its own, so that the program's children can be killed with it.
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
        """Kill the running programs and refuse to run others. Returns their names."""
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
    """Write stdin, read the output, and wait for the end."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        if stdin:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        selector.register(process.stdout, selectors.EVENT_READ, (output, MOST_OUTPUT))
        selector.register(process.stderr, selectors.EVENT_READ, (complaint, MOST_COMPLAINT))
        left = memoryview(stdin)
        while selector.get_map():
            for key, _ in selector.select(_left(deadline)):
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


def _write(pipe: IO[bytes], left: memoryview, selector: selectors.BaseSelector) -> memoryview:
    """Write a piece; a program may stop reading (EPIPE), and its exit status tells why."""
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
