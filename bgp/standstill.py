"""Whether a process that has not ended does anything: it may be stopped, wait for ever, or loop without end.

Three cases must not be mixed up. A process that does not run at all is at a standstill. One that computes may
have a large table to work on; but ExaBGP's loop, which counts its turns, must turn at some time. And who looks
may stand still as well: only time in which it has looked counts.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

STANDS = 60.0
"""Seconds for which a process that is well is never asleep: ExaBGP's loop and its helper wake by themselves."""

LOOPS = 600.0
"""Seconds that no turn of ExaBGP's loop lasts: many times every hold time."""

TURNS = "FELIX_PY_BGP_TURNS"
"""The variable by which ExaBGP finds the memory for its turns: a number, the descriptor."""

EVERY = 1.0
_MOST = 2 * EVERY
_COUNT = struct.Struct("=Q")
_MAJOR_FAULTS, _USER, _SYSTEM = 9, 11, 12
"""Fields of ``/proc/PID/stat`` behind the name (proc(5))."""


class Standstill:
    """For how long a sign has been the same. Times are those of one monotonic clock, in seconds."""

    def __init__(self) -> None:
        self._sign: object = None
        self._at = 0.0
        self.seconds = 0.0

    def look(self, sign: object, now: float) -> float:
        """Note a sign, and return for how long it has been this one; None is always another."""
        if sign is None or sign != self._sign:
            self._sign, self.seconds = sign, 0.0
        else:
            self.seconds += min(now - self._at, _MOST)
        self._at = now
        return self.seconds


def activity(pid: int) -> object:
    """What grows while a process runs or waits for its memory; None: there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return None
    switches = tuple(line for line in status.splitlines() if b"ctxt_switches" in line)
    return pid, fields[_MAJOR_FAULTS], fields[_USER], fields[_SYSTEM], switches


def children(pid: int) -> list[int]:
    """The children of a process, if the kernel tells (CONFIG_PROC_CHILDREN)."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Turns:
    """A count that one process makes and another reads, in memory that both have."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: of :func:`new_turns`."""
        self._memory = mmap.mmap(descriptor, _COUNT.size)
        self._count = 0

    def turned(self) -> None:
        """Count one more."""
        self._count += 1
        _COUNT.pack_into(self._memory, 0, self._count)

    def read(self) -> int:
        """The count."""
        return int(_COUNT.unpack_from(self._memory)[0])


def new_turns() -> int:
    """A descriptor of such memory. Raises OSError."""
    descriptor = os.memfd_create("turns", os.MFD_CLOEXEC)
    os.truncate(descriptor, _COUNT.size)
    return descriptor
