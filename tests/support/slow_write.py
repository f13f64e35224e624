"""A file of which the first write takes longer than the second, where both may be under way at once."""

from __future__ import annotations

import threading
from typing import Any

from felix_py.agent.last_good import Kept


def slow_first_write(file: Kept, *, fails: bool) -> threading.Event:
    """Holds the first write up until a second has been done, or half a second; set once it is under way.

    ``fails``: then it finds the disk full.
    """
    write, second, first = file.write, threading.Event(), threading.Event()

    def slow(fields: dict[str, Any]) -> None:
        if not first.is_set():
            first.set()
            second.wait(0.5)
            if fails:
                raise OSError(28, "No space left on device")
            write(fields)
        else:
            write(fields)
            second.set()

    file.write = slow  # type: ignore[method-assign]
    return first
