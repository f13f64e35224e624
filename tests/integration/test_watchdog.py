"""An agent whose event loop stands still ends and says where; one that was only stopped for a while does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from felix_py.observe.watchdog import STUCK
from tests.support.agent_process import AgentProcess
from tests.support.fakeapi import FakeApi
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

_HOLDS = """
import asyncio.base_events, os, time
_turn = asyncio.base_events.BaseEventLoop._run_once

def where_it_hangs():
    while os.path.exists({flag!r}):
        time.sleep(0.02)

def turn(self):
    where_it_hangs()
    _turn(self)

asyncio.base_events.BaseEventLoop._run_once = turn
"""
"""A module that Python loads at its start: the loop of the program hangs while a file is there."""


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as server:
        yield server


def held_by(flag: Path, folder: Path) -> dict[str, str]:
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HOLDS.format(flag=str(flag)))
    return {"PYTHONPATH": str(folder)}


def test_a_loop_that_stands_still_ends_the_agent_and_the_log_says_where(tmp_path: Path, api: FakeApi) -> None:
    flag = tmp_path / "hang"
    agent = AgentProcess(
        tmp_path, api, options=["--backend=nft"], environment=held_by(flag, tmp_path / "modules")
    )
    agent.start()
    try:
        agent.wait_ready()
        assert agent.get("/livez") == (200, "ok\n")
        started = time.monotonic()
        flag.touch()
        while agent.get("/livez")[0] == 200:  # the turn that is under way goes on
            assert time.monotonic() < started + 20
        assert agent.get("/livez")[0] == 0
        assert agent.wait() == STUCK
        assert 30 <= time.monotonic() - started < 60
        said = next(line for line in agent.logged() if line["component"] == "watchdog")
        assert "where_it_hangs" in said["stack"]
        # All threads, each by name or number.
        text = agent.log.read_text()
        assert text.count("most recent call first") > 3
        # What it held is in force, and the next life takes it over.
        flag.unlink()
        agent.start()
        agent.wait_ready()
        assert agent.stop()[0] == 0
    finally:
        agent.close()


_PROGRAM = """
import asyncio, sys, time
from felix_py import log
from felix_py.observe.stalls import WatchedSelector
from felix_py.observe.watchdog import Watchdog

log.configure(log.LogLevel.INFO, log.LogFormat.JSON)
selector = WatchedSelector(lambda *_: None)

async def main():
    Watchdog(selector.turn, limit=3).start()
    for number in range(10_000):
        await asyncio.sleep(0.05)
        print(number, flush=True)
        if sys.argv[1] == "busy" and number > 10:
            time.sleep(1)

asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)).run(main())
"""


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_a_process_that_was_stopped_for_longer_than_the_limit_goes_on(tmp_path: Path, how: str) -> None:
    """SIGSTOP, a debugger, a frozen control group, a suspended machine."""
    said = tmp_path / "said"
    with said.open("wb") as out, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", _PROGRAM, how], stdout=out, stderr=log)
    try:
        eventually(lambda: said.read_text().count("\n") >= 14, 60)
        for _ in range(2):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(5)  # that is the case: nothing happens meanwhile
            before = said.read_text().count("\n")
            os.kill(process.pid, signal.SIGCONT)
            eventually(lambda before=before: said.read_text().count("\n") >= before + 3, 60)  # type: ignore[misc]
        assert process.poll() is None
        assert (tmp_path / "log").read_text() == ""
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()


def test_last_words_that_nobody_takes_do_not_keep_it(tmp_path: Path) -> None:
    """The reader of its log has stopped, and the pipe is full."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    program = _PROGRAM.replace("time.sleep(1)", "time.sleep(1000)")
    process = subprocess.Popen([sys.executable, "-c", program, "busy"], stdout=subprocess.DEVNULL, stderr=write)
    try:
        assert process.wait(60) in (STUCK, -signal.SIGALRM)
    finally:
        process.kill()
        process.wait()
        os.close(read)
        os.close(write)
