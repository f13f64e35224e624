"""Programs that the lab's runtime executes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from lab.program import execute
from tests.support.waiting import until


async def test_it_reads_writes_and_ends() -> None:
    script = "cat; echo oops >&2; echo $NAME; exit 3"
    assert await execute(("sh", "-c", script), {"NAME": "value", "PATH": os.defpath}, b"input\n") == (
        3,
        b"input\nvalue\n",
        b"oops\n",
    )


async def test_much_goes_in_and_out() -> None:
    much = os.urandom(1 << 20)
    assert await execute(("cat",), {"PATH": os.defpath}, much) == (0, much, b"")


async def test_a_signal_ends_it() -> None:
    code, _, _ = await execute(("sh", "-c", "kill -9 $$"), {"PATH": os.defpath}, b"")
    assert code == -signal.SIGKILL


async def test_what_python_ignores_it_does_not() -> None:
    code, _, _ = await execute(("sh", "-c", "kill -PIPE $$"), {"PATH": os.defpath}, b"")
    assert code == -signal.SIGPIPE


async def test_cancelled_it_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    script = (
        f"import os, pathlib, time; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    work = asyncio.create_task(execute((sys.executable, "-c", script), dict(os.environ), b""))
    await until(lambda: told.exists() and told.read_text())
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


async def test_what_cannot_be_executed_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        await execute(("/no/such/program",), {}, b"")
    assert len(os.listdir("/proc/self/fd")) == before
