"""Doing something of ours inside a machine of a lab: in its network and with its mounts."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import TypeVar

from lab.lab import Lab
from lab.namespaces import CLONE_NEWNET, CLONE_NEWNS, setns
from lab.state import LabError

T = TypeVar("T")
_CHUNK = 1 << 16


def inside_machine(lab: Lab, machine: str, work: Callable[[], T]) -> T:
    """Do it in a process of its own, which is in the machine; the result comes back pickled.

    Raises:
        LabError: there is no such machine, or the work failed.
    """
    pid = lab.machine(machine).pid
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _work(pid, work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        raise LabError(f"{machine}: the process that was to look there has died")
    result, failure = pickle.loads(answer)  # noqa: S301 - this program itself has written it
    if failure:
        raise LabError(f"{machine}: {failure}")
    found: T = result
    return found


def _work(pid: int, work: Callable[[], T], writing: int) -> None:
    """In the child; never returns."""
    try:
        for name, kind in (("net", CLONE_NEWNET), ("mnt", CLONE_NEWNS)):
            fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
            setns(fd, kind)
            os.close(fd)
        answer = pickle.dumps((work(), ""))
    except BaseException as error:
        answer = pickle.dumps((None, str(error) or type(error).__name__))
    left = memoryview(answer)
    while left:
        left = left[os.write(writing, left[:_CHUNK]) :]
    os._exit(0)
