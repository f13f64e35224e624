"""Processes of a lab: started so that they outlive whoever starts them, and found again by a mark.

Every process of a lab has the path of the lab's folder in its environment. So it is found whatever has crashed,
also when its starter died before it could note a process id, and when the folder is gone. What people have begun
on the lab's machines (``felix-py lab exec``) is found by its network namespace.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

_MARK = "FELIX_PY_LAB_HOME"


class Process(msgspec.Struct, frozen=True):
    """A process, told from a later one with the same id by its start time (proc_pid_stat(5), field 22)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started


def start(
    home: Path,
    argv: Sequence[str],
    log: Path,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program of the lab whose folder is ``home``; it outlives this process, its output goes to ``log``.

    Raises:
        OSError: the program or the log's folder is not there.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {}), _MARK: str(home)},
            cwd="/",
            pass_fds=pass_fds,
            start_new_session=True,
        )


def process_of(pid: int) -> Process:
    """A running process by its id."""
    return Process(pid, start_time(pid) or 0)


def marked(home: Path) -> list[int]:
    """Processes of the lab whose folder is, or was, ``home``."""
    mark = f"{_MARK}={home}".encode()
    return [pid for pid, environment in _environments() if mark in environment]


def homes() -> list[Path]:
    """Folders of all labs of which a process runs; a folder may be gone."""
    prefix = f"{_MARK}=".encode()
    return sorted(
        {
            Path(os.fsdecode(word.removeprefix(prefix)))
            for _, environment in _environments()
            for word in environment
            if word.startswith(prefix)
        }
    )


def dwelling(netns: Sequence[Path]) -> list[int]:
    """Processes in these network namespaces, but for this one and those that it descends from."""
    wanted = set()
    for path in netns:
        with contextlib.suppress(OSError):
            wanted.add(_identity(path.stat()))
    own = set(_ancestors(os.getpid()))
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if pid not in own and _identity(os.stat(f"/proc/{pid}/ns/net")) in wanted:
                found.append(pid)
    return found


def stop_all(find: Callable[[], Sequence[int]], patience: float = 5.0) -> None:
    """End all processes that ``find`` finds: politely, and after ``patience`` seconds for certain."""
    _signal(find(), signal.SIGTERM, patience)
    while _signal(find(), signal.SIGKILL, patience):
        pass


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped it (SIGSTOP, a debugger)."""
    fields = _stat(pid)
    return fields is not None and fields[0] in "Tt"


def _signal(pids: Sequence[int], number: signal.Signals, patience: float) -> bool:
    """Send a signal to all and wait for them; false when there were none."""
    handles = []
    for pid in pids:
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


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    """Of all processes but this one; a zombie has none."""
    for pid in _pids():
        if pid != os.getpid():
            with contextlib.suppress(OSError):
                yield pid, Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def _ancestors(pid: int) -> Iterator[int]:
    while pid:
        yield pid
        fields = _stat(pid)
        pid = int(fields[1]) if fields else 0


def _stat(pid: int) -> list[str] | None:
    """proc_pid_stat(5) from its third field on, the state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
