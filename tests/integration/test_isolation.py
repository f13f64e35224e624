"""The tests' own namespaces: nothing leaks into the machine's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually

pytestmark = pytest.mark.root


def test_process_is_not_in_the_machines_network() -> None:
    assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net")
    assert os.readlink("/proc/self/ns/mnt") != os.readlink(f"/proc/{os.getppid()}/ns/mnt")


@pytest.mark.usefixtures("netns")
def test_rules_stay_in_the_test(make_netns: Callable[[str], NetworkNamespace]) -> None:
    run("iptables-nft", "-A", "FORWARD", "-j", "DROP")
    other = make_netns("other")
    assert "-j DROP" in run("iptables-nft", "-S", "FORWARD")
    assert "-j DROP" not in other.run("iptables-nft", "-S", "FORWARD")


ROOT = Path(__file__).parents[2]
SLEEPER = """
import subprocess, sys, time
from pathlib import Path

def test_that_starts_what_outlives_it():
    started = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    Path({pid!r}).write_text(str(started.pid))
    time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        pytest.param(["-n", "2"], signal.SIGINT, id="workers-interrupted"),
        pytest.param([], signal.SIGTERM, id="one process-terminated"),
        pytest.param(["-n", "2"], signal.SIGTERM, id="workers-terminated", marks=pytest.mark.heavy),
        pytest.param([], signal.SIGINT, id="one process-interrupted", marks=pytest.mark.heavy),
    ],
)
def test_what_a_run_has_started_ends_with_it(tmp_path: Path, workers: list[str], number: signal.Signals) -> None:
    """Also where it is in a session of its own."""
    pid = tmp_path / "pid"
    (tmp_path / "test_sleeper.py").write_text(SLEEPER.format(pid=str(pid)))
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *workers]
    own = ("FELIX_PY_TEST", "PYTEST")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    argv = [sys.executable, "-m", "pytest", "-q", *options, str(tmp_path / "test_sleeper.py")]
    with subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as run_:
        started = int(eventually(lambda: pid.exists() and pid.read_text(), 60))
        run_.send_signal(number)
        run_.wait(60)
    eventually(lambda: not Path(f"/proc/{started}").exists(), 20)
