"""Ends a process before its n-th step, or makes that step fail: ``kill_at.c``, loaded before the C library.

A step is a system call that changes something outside of the process: a write, a flush, a removal, a message to
the kernel or to another process. Steps of all threads are counted together.
"""

from __future__ import annotations

import atexit
import functools
import mmap
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("kill_at.c")
_ORDERS = struct.Struct("=qqq40s")
_MANY = 1 << 40


@functools.cache
def _library() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="felix-py-kill-at-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = folder / "kill_at.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", built, _SOURCE, "-ldl"], check=True)
    return built


class KillAt:
    """Orders to the processes that are started with ``environment``, and to those that they fork."""

    def __init__(self, folder: Path) -> None:
        path = folder / "kill-at"
        path.write_bytes(bytes(mmap.PAGESIZE))
        self.environment = {"LD_PRELOAD": str(_library()), "FELIX_PY_KILL_AT": str(path)}
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def order(self, steps: int = _MANY, error: int = 0) -> None:
        """At the n-th step from now on: SIGKILL, or ``error``, which all later steps on files get as well."""
        self._memory[: _ORDERS.size] = _ORDERS.pack(steps, error, 0, b"")

    def cancel(self) -> None:
        """Nothing happens any more."""
        self.order(0)

    @property
    def hit(self) -> str:
        """The system call that it hit, or empty."""
        step: bytes = _ORDERS.unpack(self._memory[: _ORDERS.size])[3]
        return step.rstrip(b"\0").decode()

    @property
    def counted(self) -> int:
        """Steps since an order that nothing was to happen at."""
        left: int = _ORDERS.unpack(self._memory[: _ORDERS.size])[0]
        return _MANY - left
