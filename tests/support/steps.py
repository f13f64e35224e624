"""What something costs, on any machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def events_of(act: Callable[[], object]) -> int:
    """How many lines and calls of Python something takes."""
    events = 0

    def count(_frame: FrameType, _event: str, _arg: Any) -> Any:
        nonlocal events
        events += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        act()
    finally:
        sys.settrace(before)
    return events
