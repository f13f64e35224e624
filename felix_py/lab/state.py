"""What a lab is made of, on disk, so that ``down`` finds all of it whatever has crashed.

One folder a lab. ``lab.json`` is written before anything is made and holds a random token; every process of the
lab has that token in its environment, and every network namespace the lab's name in its own. So nothing that was
started is ever lost, also when its starter died before it could note a process id.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import msgspec

from felix_py.lab.namespaces import delete_netns, named_netns
from felix_py.lab.topology import check_name, netns_prefix
from policy.model import Family

STATE_ROOT = Path("/run/felix-py-lab")
VERSION = 1
_MARK = "FELIX_PY_LAB_TOKEN"


class LabError(RuntimeError):
    """What the lab cannot do, and what to do about it."""


class Phase(StrEnum):
    """STARTING also stands for "an earlier up did not finish"."""

    STARTING = "starting"
    UP = "up"


class Process(msgspec.Struct, frozen=True):
    """A process, told from a later one with the same id by its start time (proc_pid_stat(5), field 22)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return _start_time(self.pid) == self.started


class Shape(msgspec.Struct, frozen=True):
    """What the user asked for. ``backend``: auto, legacy or nft."""

    nodes: int = 2
    families: tuple[int, ...] = (4,)
    backend: str = "auto"

    @property
    def address_families(self) -> tuple[Family, ...]:
        return tuple(map(Family, self.families))

    def __str__(self) -> str:
        names = {(4,): "IPv4", (6,): "IPv6", (4, 6): "dual-stack"}
        return f"{self.nodes} node{'s' * (self.nodes != 1)}, {names[self.families]}, backend {self.backend}"


class Record(msgspec.Struct, frozen=True):
    """The content of ``lab.json``."""

    name: str
    token: str
    shape: Shape
    version: int = VERSION
    phase: Phase = Phase.STARTING
    server: str = ""
    processes: dict[str, Process] = {}


class StateDir:
    """The folder of one lab."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root.absolute()
        self.name = check_name(name)
        self.path = self.root / name

    @property
    def apiserver(self) -> Path:
        return self.path / "apiserver"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.apiserver / "kubeconfig"

    def machine(self, name: str) -> Path:
        """Folder of a node or the router."""
        return self.path / "machines" / name

    def log(self, program: str) -> Path:
        """Log of a program of the lab itself."""
        return self.path / f"{program}.log"

    def read(self) -> Record | None:
        """The record; None when there is no lab.

        Raises:
            LabError: another version of felix-py wrote it, or it is damaged.
        """
        try:
            return msgspec.json.decode((self.path / "lab.json").read_bytes(), type=Record)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as error:
            raise LabError(
                f"{self.path}/lab.json cannot be read: {error}; `felix-py lab down` removes it"
            ) from error

    def write(self, record: Record) -> None:
        """Replace the record."""
        fresh = self.path / ".lab.json"
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
        fresh.replace(self.path / "lab.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who makes or removes this lab. The folder exists from here on.

        Raises:
            LabError: another process is at it, or the folder cannot be made.
        """
        fd = self._lock()
        try:
            yield
        finally:
            os.close(fd)

    def _lock(self) -> int:
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # somebody removed it between the two
            except OSError as error:
                raise LabError(f"{self.path}: {error.strerror}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise LabError(
                    f"another felix-py is bringing lab {self.name!r} up or down just now; wait for it, "
                    "or use --name for a lab of your own"
                ) from None
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(fd).st_ino == self.path.stat().st_ino:
                    return fd
            os.close(fd)

    def empty(self) -> None:
        """Delete what is in the folder. The folder itself stays, because it is what is locked."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove(self) -> None:
        """Delete the folder, and the root when this was the last lab."""
        shutil.rmtree(self.path)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    def lab_names(self) -> list[str]:
        """All labs under the same root."""
        return sorted(entry.name for entry in self.root.iterdir()) if self.root.is_dir() else []


# --- processes ---------------------------------------------------------------------------------------


def start(
    record: Record,
    argv: Sequence[str],
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a program of the lab that outlives this process; its output goes to ``log``."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {}), _MARK: record.token},
            cwd="/",
            pass_fds=pass_fds,
            start_new_session=True,
        )
    child.returncode = 0  # it stays behind on purpose: no warning when this object goes
    return Process(child.pid, _start_time(child.pid) or 0)


def stop_all(token: str, patience: float = 5.0) -> None:
    """End every process of a lab: politely, and after ``patience`` seconds for certain."""
    _signal(token, signal.SIGTERM, patience)
    while _signal(token, signal.SIGKILL, patience):
        pass


def remove_namespaces(lab: str) -> None:
    """Delete all network namespaces of a lab, and with them all their interfaces and rules."""
    for path in named_netns(netns_prefix(lab)):
        delete_netns(path)


def _signal(token: str, number: signal.Signals, patience: float) -> bool:
    """Send a signal to all processes of a lab and wait for them; false when there were none."""
    handles = []
    for pid in _marked(token):
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    try:
        for fd in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
        _wait(handles, time.monotonic() + patience)
    finally:
        for fd in handles:
            os.close(fd)
    return bool(handles)


def _wait(handles: Sequence[int], deadline: float) -> None:
    poll = select.poll()
    for fd in handles:
        poll.register(fd, select.POLLIN)
    left = len(handles)
    while left and (seconds := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(seconds * 1000):
            poll.unregister(fd)
            left -= 1


def _marked(token: str) -> list[int]:
    mark = f"{_MARK}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
