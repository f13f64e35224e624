"""The sidecar where it is hindered: what it has goes on, and what it was asked for comes once it can."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgp.model import SpeakerConfig
from bgp.render import render
from bgp.sidecar import CONFIG, RUNNING
from tests.support.bgp import Sidecar, config
from tests.support.isolate import run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

PATIENCE = 60.0


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    """In a folder of a file system of its own. ExaBGP runs, with no peers."""
    found = Sidecar(tmp_path / "run")
    run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(found.run_dir))
    try:
        write(found, text())
        found.start()
        eventually(found.exabgp, PATIENCE)
        yield found
    finally:
        found.stop()
        run("umount", "--lazy", str(found.run_dir))


def text(router_id: str = "10.9.0.1") -> str:
    return render(SpeakerConfig(asn=65001, router_id=router_id), config().peers[:0]) + f"# {router_id}\n"


def write(sidecar: Sidecar, text: str) -> None:
    new = sidecar.run_dir / "new"
    new.write_text(text)
    new.rename(sidecar.run_dir / CONFIG)


def in_force(sidecar: Sidecar, text: str) -> bool:
    return (sidecar.run_dir / RUNNING).read_bytes().endswith(text.encode())


def limit_files(pid: int, most: int) -> None:
    run("prlimit", "--pid", str(pid), f"--nofile={most}:")


def test_a_full_disk(sidecar: Sidecar) -> None:
    exabgp, room = sidecar.exabgp(), sidecar.run_dir / "room"
    long = text() + "# \n" * 4096
    write(sidecar, text("10.9.0.2"))
    eventually(lambda: in_force(sidecar, text("10.9.0.2")), PATIENCE)
    new = sidecar.run_dir / "new"
    new.write_text(long)
    with room.open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    new.rename(sidecar.run_dir / CONFIG)
    eventually(lambda: "No space left" in sidecar.log, PATIENCE)
    room.unlink()
    eventually(lambda: in_force(sidecar, long), PATIENCE)
    assert sidecar.exabgp() == exabgp


def test_a_validation_that_is_killed(sidecar: Sidecar) -> None:
    """As by the kernel, for lack of memory."""
    exabgp = sidecar.exabgp()
    write(sidecar, text("10.9.0.2"))
    os.kill(eventually(lambda: sidecar.child("validate"), PATIENCE), signal.SIGKILL)
    eventually(lambda: in_force(sidecar, text("10.9.0.2")), PATIENCE)
    assert sidecar.exabgp() == exabgp


def test_no_process_can_be_started(sidecar: Sidecar) -> None:
    exabgp, (pid, *_) = sidecar.exabgp(), sidecar.pids()
    limit_files(pid, len(os.listdir(f"/proc/{pid}/fd")) + 1)
    write(sidecar, text("10.9.0.2"))
    eventually(lambda: "Too many open files" in sidecar.log, PATIENCE)
    assert sidecar.exabgp() == exabgp
    os.kill(exabgp, signal.SIGKILL)
    eventually(lambda: "ExaBGP cannot be started" in sidecar.log, PATIENCE)
    limit_files(pid, 1024)
    eventually(lambda: sidecar.exabgp() and in_force(sidecar, text("10.9.0.2")), PATIENCE)


def test_bfd_cannot_be_started(sidecar: Sidecar) -> None:
    with_bfd = "# felix-py bfd 10.9.0.2 10.9.0.1 - 300 3 singlehop 255\n" + text()
    write(sidecar, with_bfd)
    bfd = eventually(lambda: sidecar.child("bgp.bfd.speaker"), PATIENCE)
    exabgp, (pid, *_) = sidecar.exabgp(), sidecar.pids()
    limit_files(pid, len(os.listdir(f"/proc/{pid}/fd")) - 2)
    os.kill(bfd, signal.SIGKILL)
    eventually(lambda: "BFD cannot be started" in sidecar.log, PATIENCE)
    assert sidecar.exabgp() == exabgp
    limit_files(pid, 1024)
    eventually(lambda: sidecar.child("bgp.bfd.speaker"), PATIENCE)


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe\0", b"neighbor {"], ids=["empty", "bytes", "torn"])
def test_what_ran_last_is_damaged(sidecar: Sidecar, damaged: bytes) -> None:
    wanted = (sidecar.run_dir / CONFIG).read_text()
    sidecar.kill()
    (sidecar.run_dir / CONFIG).unlink()
    (sidecar.run_dir / RUNNING).write_bytes(damaged)
    said = len(sidecar.log)
    sidecar.start()
    eventually(lambda: "ExaBGP" in sidecar.log[said:], PATIENCE)
    write(sidecar, wanted)
    eventually(lambda: in_force(sidecar, wanted) and sidecar.exabgp(), PATIENCE)
    assert sidecar.log[said:].count('"event": "started"') == 1
