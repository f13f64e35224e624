"""From a thread to the event loop, in order, with bounded memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_LIMIT = 2048
"""Items queued for the loop; beyond that the thread blocks, and so, by TCP flow control, does the API server."""

_TURN = 128
"""Items delivered in one turn of the loop, so that a long list does not delay CNI calls."""

_PAUSE = 0.002
"""Seconds between two turns: the first item of a burst is delivered at once, the rest in batches. Waking the loop
for every item costs more than decoding it."""


class Closed(Exception):
    """The bridge or its loop is closed."""


class Bridge(Generic[T]):
    """Delivers one thread's items, in order and in batches, as calls of ``deliver`` on the loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Callable[[Sequence[T]], None], limit: int = _LIMIT
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: list[T] = []
        self._called = False
        self._closed = False

    def put(self, items: Sequence[T]) -> None:
        """Queue items; blocks while the queue is full. Raises Closed. Never call this on the loop."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._limit)
            if self._closed:
                raise Closed
            self._waiting.extend(items)
            if self._called:
                return
            self._called = True
        try:
            self._loop.call_soon_threadsafe(self._take)
        except RuntimeError as error:
            raise Closed from error

    def close(self) -> None:
        """Drop queued items and unblock a thread in :meth:`put`. Called on the loop."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _take(self) -> None:
        with self._changed:
            if not self._waiting:
                self._called = False
                return
            turn, self._waiting = self._waiting[:_TURN], self._waiting[_TURN:]
            more = bool(self._waiting)
            self._changed.notify_all()
        if more:
            self._loop.call_soon(self._take)
        else:
            self._loop.call_later(_PAUSE, self._take)
        self._deliver(turn)
