"""The record of a lab: who may change it, and which processes are its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import processes
from lab.processes import Process, homes, marked, process_of, start, stop_all
from lab.state import (
    VERSION,
    KeeperState,
    Kept,
    LabError,
    LabProgram,
    Listener,
    Phase,
    Record,
    Shape,
    StateDir,
)

RECORD = Record(name="lab", shape=Shape())


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "labs", "lab")


def test_record_survives_a_round_trip(state: StateDir) -> None:
    assert state.read() is None
    program = LabProgram("apiserver", ("server", "--x"), (Listener("", "127.0.0.1", 0),))
    record = Record(name="lab", shape=Shape(3, (4, 6), "nft"), phase=Phase.UP, programs=(program,))
    kept = KeeperState(Process(1, 2), {"apiserver": Kept(Process(3, 4), 5, 6.0)}, {"apiserver": [7]})
    assert state.read_keeper() is None
    with state.locked():
        state.write(record)
        state.write_keeper(kept)
    assert state.read() == record
    assert state.read_keeper() == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        f'{{"version": {VERSION}, "name": "lab"}}',
        f'{{"version": {VERSION}, "name": 1, "shape": {{}}}}',
        '{"name": "lab", "token": "of an earlier version", "shape": {}}',
        f'{{"version": {VERSION + 1}, "name": "lab", "shape": {{}}}}',
    ],
)
def test_damaged_record_says_how_to_go_on(state: StateDir, text: str) -> None:
    state.path.mkdir(parents=True)
    (state.path / "lab.json").write_text(text)
    with pytest.raises(LabError, match="felix-py lab down"):
        state.read()


def test_lock_is_for_one_and_freed_afterwards(state: StateDir) -> None:
    with (
        state.locked(),
        pytest.raises(LabError, match="another felix-py is bringing lab 'lab' up or down"),
        state.locked(),
    ):
        pass  # pragma: no cover
    with state.locked():
        pass


def test_lock_of_a_removed_lab_keeps_nobody_out(state: StateDir) -> None:
    with state.locked():
        state.write(RECORD)
        state.remove()
        assert not state.root.exists()
        with state.locked():
            state.write(RECORD)
    assert state.read() == RECORD


def test_lock_dies_with_its_process(state: StateDir) -> None:
    program = (
        "import sys, pathlib; from lab.state import StateDir\n"
        "with StateDir(pathlib.Path(sys.argv[1]), 'lab').locked(): print('locked', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(state.root)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(LabError), state.locked():
            pass  # pragma: no cover
        holder.kill()
    with state.locked():
        pass


def test_process_is_not_mistaken_for_another_with_its_id(tmp_path: Path) -> None:
    child = start(tmp_path, ["sleep", "100"], tmp_path / "log")
    process = process_of(child.pid)
    try:
        assert process.alive
        assert not Process(process.pid, process.started + 1).alive
    finally:
        stop_all(lambda: marked(tmp_path))
    child.wait()
    assert not process.alive


def test_stop_ends_all_of_one_lab_and_nothing_else(tmp_path: Path) -> None:
    """Also grandchildren that nobody noted, and processes that ignore SIGTERM; the folder may be gone."""
    mine, others = tmp_path / "mine", tmp_path / "mine-too"
    other = start(others, ["sleep", "100"], tmp_path / "log")
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
    )
    children = [
        start(mine, [sys.executable, "-c", stubborn], tmp_path / "stubborn"),
        start(mine, ["sh", "-c", "sleep 100 & echo $! >&2; wait"], tmp_path / "parent"),
    ]
    while not ((tmp_path / "stubborn").read_text() and (tmp_path / "parent").read_text()):
        os.sched_yield()
    grandchild = int((tmp_path / "parent").read_text())
    assert {mine, others} <= set(homes())
    stop_all(lambda: marked(mine), patience=0.3)
    for child in children:
        child.wait()
    assert not [file for file in Path("/proc").glob(f"{grandchild}/cmdline") if file.read_bytes()]
    assert other.poll() is None
    stop_all(lambda: marked(others))
    other.wait()


def test_stop_spares_whom_this_process_descends_from(tmp_path: Path) -> None:
    """They dwell in the same network namespace as this test does."""
    child = subprocess.Popen(["sleep", "100"])
    try:
        found = processes.dwelling([Path("/proc/self/ns/net")])
        assert child.pid in found
        assert not {os.getpid(), os.getppid()} & set(found)
    finally:
        child.kill()
        child.wait()
