"""How long a process counts as standing still, and what it does meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bgp.standstill import Standstill, Turns, activity, children, new_turns
from tests.support.waiting import eventually


def test_only_time_in_which_somebody_looked_counts() -> None:
    seen = Standstill()
    assert [seen.look("same", now) for now in (10.0, 11.0, 12.0)] == [0.0, 1.0, 2.0]
    assert seen.look("same", 5000.0) == 4.0  # who looks was suspended
    assert seen.look("another", 5001.0) == 0.0
    assert seen.look("another", 5002.0) == 1.0


def test_what_cannot_be_read_is_no_standstill() -> None:
    seen = Standstill()
    assert [seen.look(None, now) for now in (10.0, 11.0, 12.0)] == [0.0, 0.0, 0.0]


def test_turns_are_read_by_another_process() -> None:
    descriptor = new_turns()
    here, there = Turns(descriptor), Turns(os.dup(descriptor))
    os.close(descriptor)
    assert there.read() == 0
    here.turned()
    here.turned()
    assert there.read() == 2


@pytest.fixture(params=["import time\nwhile True: time.sleep(0.05)", "while True: pass"], ids=["idle", "busy"])
def child(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", request.param]) as process:
        yield process
        process.kill()


def test_the_activity_of_a_process_grows_until_it_is_stopped(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in children(os.getpid())
    before = activity(child.pid)
    eventually(lambda: activity(child.pid) != before)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    stopped = activity(child.pid)
    assert stopped is not None
    assert activity(child.pid) == stopped
    child.send_signal(signal.SIGCONT)
    eventually(lambda: activity(child.pid) != stopped)
    child.kill()
    child.wait()
    assert activity(child.pid) is None
    assert children(child.pid) == []
