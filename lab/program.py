"""Executes a program for the event loop: its input and output are files in memory, its end wakes the loop once.

asyncio's own subprocesses take 0.8 ms of the loop's time for each (three pipes, a thread that waits, ten
callbacks), and of 50 plugins at once they are what all wait for.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

_DEFAULT_AGAIN = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that Python ignores, and a program must not."""


async def execute(
    program: tuple[str, ...], environment: Mapping[str, str], stdin: bytes
) -> tuple[int, bytes, bytes]:
    """Run a program to its end; returns its exit code (negative: a signal's), stdout and stderr. Cancelled, it is
    killed.

    Raises:
        OSError: it cannot be executed.
    """
    with ExitStack() as stack:
        files = []
        for name in ("stdin", "stdout", "stderr"):
            files.append(os.memfd_create(name))
            stack.callback(os.close, files[-1])
        os.pwrite(files[0], stdin, 0)
        pid = _spawn(program, environment, files)
        try:
            await _ended(pid)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            code = _reap(pid)
        output, errors = (os.pread(file, os.fstat(file).st_size, 0) for file in files[1:])
    return code, output, errors


def _spawn(program: tuple[str, ...], environment: Mapping[str, str], files: Sequence[int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate(files)]
    return os.posix_spawnp(program[0], program, environment, file_actions=actions, setsigdef=_DEFAULT_AGAIN)


def _reap(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


async def _ended(pid: int) -> None:
    """Return once a child has ended; it is still to be waited for."""
    loop, watched = asyncio.get_running_loop(), os.pidfd_open(pid)
    ended = loop.create_future()
    loop.add_reader(watched, ended.set_result, None)
    try:
        await ended
    finally:
        loop.remove_reader(watched)
        os.close(watched)
