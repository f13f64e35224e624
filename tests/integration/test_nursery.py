"""What is forked from the nursery of tests is what would have been started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from execnet import XSpec
from execnet.gateway_io import popen_args

from bgp import bridge
from tests.support import nursery
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


_OF_THE_C_LIBRARY = 3 << 31
"""Signals 32 and 33, which no program can use; whether they are ignored depends on who started whom before."""


def shown(process: subprocess.Popen[Any]) -> dict[str, object]:
    """What the kernel says of a process, but for its memory and its id."""
    place = Path(f"/proc/{process.pid}")
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    session = (place / "stat").read_text().rpartition(")")[2].split()[1:4]
    ignored = int(status["SigIgn"], 16) & ~_OF_THE_C_LIBRARY
    return {
        **{name: status[name] for name in ("Name", "SigBlk", "SigCgt", "Uid", "CapEff", "Threads")},
        "SigIgn": f"{ignored:x}",
        **{name: (place / name).read_bytes() for name in ("cmdline", "environ")},
        **{name: os.readlink(place / name) for name in ("cwd", "exe", "ns/net", "ns/mnt")},
        "parent, group and session": ["own" if int(one) == process.pid else one for one in session],
        "files": sorted(re.sub(r"\[\d+\]", "", os.readlink(one)) for one in (place / "fd").iterdir()),
    }


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}], ids=str)
def test_the_kernel_sees_no_difference(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], options: dict[str, Any]
) -> None:
    """Of the lab's API server, which is well known once it has said where it listens."""
    argv = [sys.executable, "-m", "lab.apiserver", "--listen", "127.0.0.1:0", "--state-dir", str(tmp_path)]
    here = make_netns("here")
    options = {**options, "stdout": subprocess.PIPE}
    environment = {**os.environ, "FELIX_PY_NODE_NAME": "nöde", "EMPTY": ""}
    found = []
    for how in (nursery.really_started(), nullcontext()):
        with (
            how,
            here.enter(),
            (tmp_path / "errors").open("ab") as errors,
            subprocess.Popen(argv, env=environment, cwd=tmp_path, stderr=errors, **options) as process,
        ):
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"http://")
            found.append(shown(process))
            process.send_signal(signal.SIGTERM)
        found[-1]["exit code"] = process.returncode
    started, forked = found
    assert forked == started


@pytest.mark.parametrize(
    "argv",
    [
        [FELIX_PY, "status", "--agent-socket", "/nowhere"],
        [FELIX_PY, "nosuch"],
        [sys.executable, "-m", "bgp.launch", "validate", "/nowhere"],
        [sys.executable, "-m", "lab.machine", "/nowhere"],  # a traceback
        [sys.executable, "-I", "-S", bridge.__file__],
        ["felix-py", "--version"],
    ],
    ids=lambda argv: " ".join(argv[-3:]),
)
def test_the_caller_sees_no_difference(argv: list[str]) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    options: dict[str, Any] = {"env": {**os.environ, "PATH": path}, "capture_output": True, "text": True}
    forked = subprocess.run(argv, check=False, **options)
    with nursery.really_started():
        started = subprocess.run(argv, check=False, **options)
    assert forked.returncode == started.returncode
    assert forked.stdout == started.stdout
    if started.stderr.startswith("Traceback"):  # that Python's own start is a part of
        assert forked.stderr.splitlines()[-1] == started.stderr.splitlines()[-1]
    else:
        assert forked.stderr == started.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_signals_end_it_as_they_would(tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "bgp.sidecar", "--run-dir", str(tmp_path)]
    codes = []
    for how in (nursery.really_started(), nullcontext()):
        with how, subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
            eventually((tmp_path / "sidecar.lock").exists, 60)
            (tmp_path / "sidecar.lock").unlink()
            status = Path(f"/proc/{process.pid}/status")
            # Its handlers are there.
            eventually(lambda: int(re.findall(r"SigCgt:\t(\w+)", status.read_text())[0], 16) & 1 << 14, 60)  # noqa: B023
            process.send_signal(number)
        codes.append(process.returncode)
    assert codes[0] == codes[1]


def test_another_interpreter_is_really_started(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('loaded', flush=True)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([FELIX_PY, "--version"], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("loaded\nfelix-py ")


def test_workers_and_what_they_start_have_loaded_everything() -> None:
    """It is not loaded again for each: they are forked, one from another."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert {"exabgp.application.main", "iptc", "pyroute2"} <= sys.modules.keys()
    assert nursery._ours([sys.executable, "-I", "-S", bridge.__file__, "/run/felix-py/bridge.sock"])
    assert nursery._ours(popen_args(XSpec("popen")))
