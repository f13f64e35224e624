"""From a thread to the event loop, in order, with bounded memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_LIMIT = 2048
"""Items that may wait for the loop; a thread with more waits, and so, by TCP, does the API server."""

_TURN = 128
"""Items delivered in one turn of the loop, so that a long list does not hold up CNI calls."""


_PAUSE = 0.002
"""Seconds between two turns: the first of a burst is delivered at once, the others wait for each other. To wake
the loop for every single item would cost more than to decode it."""


class Closed(Exception):
    """Nobody takes anything from the bridge any more."""


class Bridge(Generic[T]):
    """Items put in by one thread come out, in order and in batches, as calls of ``deliver`` on the loop.

    While the loop is busy, what arrives gathers into one batch: the busier the loop, the cheaper the item.
    """

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
        """Hand items over; waits while the loop is behind. Never call this on the loop.

        Raises:
            Closed: the bridge or the loop is closed.
        """
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
        """Drop what waits and set free a thread that does. On the loop."""
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
