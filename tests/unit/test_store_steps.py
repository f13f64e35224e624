"""The address store at every one of its steps: the process is killed there, or the disk fails from there on."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from felix_py.ipam.history import History, history_of
from felix_py.ipam.store import AddressStore, Claim, StoreDamaged
from tests.support.kill_at import KillAt

CIDRS = ("10.0.0.0/29", "fd00::/64")
STATES = ["ab", "abc", "bc", "bcde", "bcde", "cde"]
"""The containers with a lease before the first operation of the child, and after each."""

CHILD = """
import os, sqlite3, sys
from pathlib import Path
from felix_py.ipam.history import History, history_of
from felix_py.ipam.store import AddressStore, Claim, StoreError
CIDRS, STATES = %r, %r

def claim(name):
    return Claim(name, "eth0", "felix-py", "default", f"pod-{name}")

def two(store):
    with store.group():
        store.allocate(claim("d"), CIDRS)
        store.allocate(claim("e"), CIDRS)

OPERATIONS = [
    lambda store: store.allocate(claim("c"), CIDRS),
    lambda store: store.release("a", "eth0"),
    two,
    lambda store: store.set_boot("next"),
    lambda store: store.release("b", "eth0"),
]

def work(path):
    store = AddressStore(path, history=History(history_of(path), "this"))
    for number, operation in enumerate(OPERATIONS):
        try:
            operation(store)
        except sqlite3.Error:
            now = "".join(sorted(key[0] for key in store.keys()))
            assert now in STATES[number:number + 2], (number, now)
            return
        os.write(told, b".")

told = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
print("started", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        code = 1
        try:
            work(Path(line.strip()))
            code = 0
        except StoreError as error:
            assert str(error).startswith("cannot use the address store"), error
            code = 0
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Child:
    """Runs the operations in a process of their own, again and again."""

    def __init__(self, folder: Path) -> None:
        self.kill_at = KillAt(folder)
        self._template = folder / "template"
        self._folder = folder / "run"
        self._told = folder / "told"
        store = AddressStore(self._template / "leases.db")
        store.set_boot("this")
        for name in "ab":
            store.allocate(Claim(name, "eth0", "felix-py", "default", f"pod-{name}"), CIDRS)
        store.close()
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD % (CIDRS, STATES), str(self._told)],
            env=self.kill_at.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "started\n"  # it may have written compiled modules

    def run(self, *orders: int) -> tuple[int, int, Path]:
        """One run: how it ended, how many operations were told to be done, and the database that it left."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._template, self._folder)
        self._told.write_bytes(b"")
        path = self._folder / "leases.db"
        self.kill_at.order(*orders)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return code, self._told.stat().st_size, path

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    child = Child(tmp_path)
    yield child
    child.close()


def check(path: Path, done: int, what: str) -> None:
    """What the next agent finds: all that was told to be done, and the rest wholly or not at all."""
    store = AddressStore(path, history=History(history_of(path), "this"))
    try:
        assert "".join(sorted(key[0] for key in store.keys())) in STATES[done : done + 2], what  # noqa: SIM118
        held = [address for lease in store.all() for address in lease.addresses.values()]
        assert len(held) == len(set(held)) == 2 * len(store.all()), what
        new = store.allocate(Claim("z", "eth0", "felix-py", "default", "pod-z"), CIDRS)
        assert not set(new.addresses.values()) & set(held), what
    finally:
        store.close()


SECTOR = 512


def power_cut(dice: random.Random, before: bytes, writes: list[bytes]) -> bytes:
    """A file of which the disk has ``before``, and of the later contents ``writes`` any sectors or none."""
    disk = bytearray(before)
    for content in writes:
        for at in range(0, len(content), SECTOR):
            if dice.random() < 0.5:
                disk[len(disk) : at] = bytes(max(0, at - len(disk)))
                disk[at : at + SECTOR] = content[at : at + SECTOR]
    return bytes(disk)


def contents(path: Path, suffix: str) -> bytes:
    file = path.with_name(path.name + suffix)
    return file.read_bytes() if file.exists() else b""


def end_of(path: Path, what: str) -> str:
    """What a start after a power cut comes to."""
    try:
        store = AddressStore(path)
    except StoreDamaged:
        return "damaged"
    keys = "".join(sorted(key[0] for key in store.keys()))  # noqa: SIM118 - no mapping
    assert keys in STATES, what
    store.allocate(Claim("z", "eth0", "felix-py", "default", "pod-z"), CIDRS)
    held = [address for lease in store.all() for address in lease.addresses.values()]
    assert len(held) == len(set(held)), what
    store.close()
    store = AddressStore(path)
    assert "".join(sorted(key[0] for key in store.keys())) == keys + "z", what  # noqa: SIM118 - no mapping
    store.close()
    return "whole"


def test_killed_and_without_power_at_every_step(child: Child) -> None:
    """After kill -9 the files are as they were. After a power cut, what was not flushed is on disk in any part:
    then the leases are those of one moment, or the store says that it is damaged.
    """
    dice, hit, flushed = random.Random(5), list[str](), 0
    moments: list[dict[str, bytes]] = []  # what the files held before each step
    ends = dict.fromkeys(("damaged", "whole"), 0)
    while True:
        code, done, path = child.run(len(hit) + 1)
        if not (step := child.kill_at.hit):
            break
        assert code == -9
        hit.append(step)
        moments.append({suffix: contents(path, suffix) for suffix in ("", "-journal")})
        what = f"step {len(hit)}: {step}"
        check(path, done, what)
        for suffix in ("", "-journal"):  # the journal is never flushed
            known = moments if suffix else moments[flushed:]
            image = power_cut(dice, known[0][suffix], [moment[suffix] for moment in known[1:]])
            path.with_name(path.name + suffix).write_bytes(image)
        ends[end_of(path, what)] += 1
        if step == "fdatasync":
            flushed = len(moments)  # from the next moment on
    assert (code, done) == (0, len(STATES) - 1)
    assert len(hit) > 30
    assert {"pwrite64", "fdatasync", "write"} <= set(hit)
    assert min(ends.values()) > 5, ends


def test_the_disk_fails_from_every_step_on(child: Child) -> None:
    """A full disk and a broken one, by turns."""
    step = 0
    while True:
        step += 1
        code, done, path = child.run(step, (errno.ENOSPC, errno.EIO)[step % 2])
        assert code == 0, step
        if not child.kill_at.hit:
            break
        check(path, done, f"step {step}: {child.kill_at.hit}")
    assert step > 20


def test_damage_is_never_taken_for_a_crash(child: Child) -> None:
    """The check itself can fail: a lost page is found."""
    _, done, path = child.run()
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(StoreDamaged):
        check(path, done, "")
