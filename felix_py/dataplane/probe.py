"""Whether this kernel and these tools take some rules: tried where nothing hangs on it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable

from felix_py.dataplane.backend import ToolError, command, run
from felix_py.dataplane.iptables_text import render
from felix_py.records import Backend, Words
from policy.model import Family

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def refusal(families: Iterable[Family], backend: Backend, rule: Words) -> str | None:
    """Why a rule cannot be written on this node; None if it can.

    It is written into an empty network namespace that vanishes at once: nothing on the node changes.
    """
    found: list[str] = []

    def attempt() -> None:
        try:
            if _libc.unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            for family in families:
                text = f"*filter\n-A OUTPUT {render(rule).text}\nCOMMIT\n"
                run([command(family, backend, "restore"), "--noflush", "-w", "10"], text)
        except (OSError, ToolError) as error:
            found.append(str(error))

    thread = threading.Thread(target=attempt, name="probe")
    thread.start()
    thread.join()
    return found[0] if found else None
