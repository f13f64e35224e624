"""The deny log of one node: packets in, few and telling events out.

Equal packets within two seconds become one event. The kernel limits each rule; here the number of events is
limited as a whole, so that a scan of ten thousand ports costs neither memory nor a flooded log.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from felix_py import log
from felix_py.backoff import TokenBucket
from felix_py.dataplane.nflog import LoggedPacket
from felix_py.metrics import Metrics
from felix_py.observe.deny_events import DenyEvent, Describer, EventKey, drop_of, event_key, timestamp

WINDOW = 2.0
"""Seconds for which an event stays open: equal packets are counted, not told."""

KEPT = 1000
"""Events that the agent remembers."""

_EVENTS_A_SECOND, _EVENTS_AT_ONCE = 50.0, 200
"""This bounds the open events as well: 300 in a window."""

_LINES_A_SECOND, _LINES_AT_ONCE = 5.0, 50

_MOST_FOLLOWERS = 16
_FOLLOWER_BACKLOG = 1000


@dataclass(slots=True)
class _Open:
    event: DenyEvent
    close_at: float
    count: int
    until: float

    def so_far(self) -> DenyEvent:
        return msgspec.structs.replace(self.event, count=self.count, until=timestamp(self.until))


class TooManyFollowers(Exception):
    """So many already follow that one more is refused."""


class Denies:
    """Events of one node. Everything here runs on the event loop."""

    def __init__(
        self,
        describer: Describer,
        metrics: Metrics,
        *,
        lines: bool,
        clock: Callable[[], float] = time.monotonic,
        first_id: int | None = None,
    ) -> None:
        """``lines``: write each event to the log as well. ``clock`` is in seconds and never goes back."""
        self._describer = describer
        self._metrics = metrics
        self._lines = lines
        self._clock = clock
        # From the time, so that a follower may ask the restarted agent for what came after the last it saw.
        self._next_id = first_id if first_id is not None else int(time.time() * 1000)
        self._open: OrderedDict[EventKey, _Open] = OrderedDict()
        self._closed: deque[DenyEvent] = deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[DenyEvent]] = set()
        self._events_allowed = TokenBucket(_EVENTS_A_SECOND, _EVENTS_AT_ONCE, clock)
        self._lines_allowed = TokenBucket(_LINES_A_SECOND, _LINES_AT_ONCE, clock)
        self._lines_left_out = 0
        self._log = log.get("denies")
        self.suppressed = 0
        """Packets of which no event was made, because there were too many different ones."""

    # --- in ------------------------------------------------------------------------------------------

    def note(self, packets: Sequence[LoggedPacket]) -> None:
        """Packets that rules logged; those of other people's rules mean nothing here."""
        self.close_due()
        for packet in packets:
            self._metrics.deny_packets.inc()
            self._note(packet)

    def _note(self, packet: LoggedPacket) -> None:
        ours = drop_of(packet)
        if ours is None:
            return
        drop, header = ours
        key = event_key(drop, header)
        held = self._open.get(key)
        if held is not None:
            held.count += 1
            held.until = max(held.until, packet.time)
            return
        if not self._events_allowed.take():
            self.suppressed += 1
            self._metrics.deny_suppressed.inc()
            return
        event = self._describer.event(self._next_id, packet, drop, header)
        self._next_id += 1
        self._open[key] = _Open(event, self._clock() + WINDOW, 1, packet.time)

    def next_due(self) -> float | None:
        """When :meth:`close_due` has something to do next, by the clock; None: not before the next packet."""
        return next((held.close_at for held in self._open.values()), None)

    def close_due(self) -> None:
        """Close the events whose time is over."""
        now = self._clock()
        while self._open:
            held = next(iter(self._open.values()))
            if held.close_at > now:
                return
            self._open.popitem(last=False)
            self._close(held)

    def close_all(self) -> None:
        """Close all events: the agent stops."""
        while self._open:
            self._close(self._open.popitem(last=False)[1])

    def _close(self, held: _Open) -> None:
        event = held.so_far()
        self._closed.append(event)
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
            follower.put_nowait(event)
        if self._lines:
            self._write_line(event)

    def _write_line(self, event: DenyEvent) -> None:
        if not self._lines_allowed.take():
            self._lines_left_out += 1
            return
        left_out, self._lines_left_out = self._lines_left_out, 0
        values = msgspec.to_builtins(event)
        # The line has a time and a node of its own.
        for doubled in ("time", "node"):
            values.pop(doubled, None)
        if event.endpoint:
            values["pod"] = values.pop("endpoint")
        if left_out:
            values["lines_left_out"] = left_out
        self._log.info("denied", **values)

    # --- out -----------------------------------------------------------------------------------------

    @property
    def last_id(self) -> int:
        """The id of the newest event that was made."""
        return self._next_id - 1

    def events(self, *, closed: bool = False) -> list[DenyEvent]:
        """The newest events, oldest first, with those that are still open as they are now.

        ``closed``: only what is complete.
        """
        self.close_due()
        still_open = () if closed else (held.so_far() for held in self._open.values())
        return [*self._closed, *still_open]

    @contextmanager
    def follow(self) -> Iterator[asyncio.Queue[DenyEvent]]:
        """Every event from now on, when it is complete. One who reads too slowly loses the oldest.

        Raises:
            TooManyFollowers: see there.
        """
        if len(self._followers) >= _MOST_FOLLOWERS:
            raise TooManyFollowers(f"{_MOST_FOLLOWERS} already follow the deny log of this node")
        queue: asyncio.Queue[DenyEvent] = asyncio.Queue(_FOLLOWER_BACKLOG)
        self._followers.add(queue)
        try:
            yield queue
        finally:
            self._followers.discard(queue)
