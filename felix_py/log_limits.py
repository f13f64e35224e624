"""structlog processors that limit the size of log lines and the rate of each kind of line."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any

from msgspec import Struct

from felix_py.backoff import TokenBucket
from felix_py.structured import structlog

AT_ONCE = 100
A_SECOND = 5.0
"""Token bucket of one kind of line: its burst, and its rate per second."""

_KINDS = 1000
_LONGEST_TEXT = 4096
_LONGEST_LIST = 50


class _Kind(Struct):
    allowed: TokenBucket
    left_out: int = 0


class RateLimit:
    """Limits the rate of lines of one kind, which is component, level and event text.

    The next line that passes has the number of dropped ones in ``left_out``.
    """

    def __init__(
        self, at_once: int = AT_ONCE, a_second: float = A_SECOND, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at_once = at_once
        self._a_second = a_second
        self._clock = clock
        self._kinds: OrderedDict[tuple[object, str, object], _Kind] = OrderedDict()
        self._lock = threading.Lock()
        self.left_out = 0

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Raises structlog.DropEvent for a line above the rate."""
        key = (event.get("component"), method, str(event.get("event"))[:200])
        with self._lock:
            kind = self._kinds.pop(key, None) or _Kind(TokenBucket(self._a_second, self._at_once, self._clock))
            self._kinds[key] = kind
            if len(self._kinds) > _KINDS:
                self._kinds.popitem(last=False)
            if not kind.allowed.take():
                kind.left_out += 1
                self.left_out += 1
                raise structlog.DropEvent
            if kind.left_out:
                event["left_out"], kind.left_out = kind.left_out, 0
        return event


def shorten(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Truncate long texts and lists, which tools, peers or API objects may have supplied."""
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _LONGEST_TEXT:
            event[key] = f"{value[:_LONGEST_TEXT]} … ({len(value)} characters)"
        elif isinstance(value, list | tuple) and len(value) > _LONGEST_LIST:
            event[key] = [*value[:_LONGEST_LIST], f"… ({len(value)} in all)"]
    return event
