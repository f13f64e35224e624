"""Everything that a test run has started ends with it: also what workers that were cut off could not end.

Each process inherits a mark in its environment, and is found by it, whatever has become of its parents.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import uuid
from pathlib import Path

_MARK = "FELIX_PY_TEST_RUN"
_PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def mark() -> bool:
    """Mark this process and all that it starts; false in a worker, which has its run's mark already."""
    if _MARK in os.environ:
        return False
    os.environ[_MARK] = uuid.uuid4().hex
    return True


def end_all() -> list[int]:
    """End whatever bears this run's mark and is not this process; their ids."""
    ended = list(_marked())
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, _PATIENCE)):
        handles = {}
        for pid in _marked():
            with contextlib.suppress(ProcessLookupError):
                handles[os.pidfd_open(pid)] = pid
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
        left = set(handles)
        while left and (gone := select.select(left, [], [], patience)[0]):
            left.difference_update(gone)
        for handle in handles:
            os.close(handle)
    return ended


def _marked() -> list[int]:
    wanted = f"{_MARK}={os.environ[_MARK]}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
