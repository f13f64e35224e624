"""The deny log of one node: aggregates logged packets into events.

Equal packets within two seconds become one event. The kernel limits the rate of each rule; here the total of
events is limited, so that a scan of ten thousand ports costs neither memory nor a flooded log.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec import Struct

from felix_py import log
from felix_py.backoff import TokenBucket
from felix_py.dataplane.nflog import LoggedPacket
from felix_py.metrics import Metrics
from felix_py.observe.deny_events import DenyEvent, Describer, EventKey, drop_of, event_key, pair_of, timestamp

WINDOW = 2.0
"""Seconds for which an event stays open, and counts equal packets."""

KEPT = 1000
"""Closed events that are kept."""

_EVENTS_A_SECOND, _EVENTS_AT_ONCE = 50.0, 200
"""This bounds the open events as well: 300 in a window."""

_LINES_A_SECOND, _LINES_AT_ONCE = 5.0, 50

RECENT = 60.0
"""Seconds that :meth:`Denies.recent` looks back."""

_MOST_FOLLOWERS = 16
_FOLLOWER_BACKLOG = 1000


class _Open(Struct):
    event: DenyEvent
    close_at: float
    count: int
    until: float
    last: float
    """The last packet by the clock that does not jump."""

    def so_far(self) -> DenyEvent:
        return msgspec.structs.replace(self.event, count=self.count, until=timestamp(self.until))


class _Closed(Struct, frozen=True):
    event: DenyEvent
    at: float
    last: float


class Follower(asyncio.Queue[DenyEvent]):
    """The events that close from now on. ``dropped``: events that were not taken in time."""

    dropped = 0


class TooManyFollowers(Exception):
    """The limit of followers is reached."""


class Denies:
    """Events of one node. On the event loop only."""

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
        self.lines = lines
        self._clock = clock
        # Ids begin at the time, so that a follower can ask a restarted agent for the events after its last one.
        self._next_id = first_id if first_id is not None else int(time.time() * 1000)
        self._open: OrderedDict[EventKey, _Open] = OrderedDict()
        self._closed: deque[_Closed] = deque()
        self._complete_from = clock()
        self._followers: set[Follower] = set()
        self._events_allowed = TokenBucket(_EVENTS_A_SECOND, _EVENTS_AT_ONCE, clock)
        self._lines_allowed = TokenBucket(_LINES_A_SECOND, _LINES_AT_ONCE, clock)
        self._lines_left_out = 0
        self._log = log.get("denies")
        self.suppressed = 0
        """Packets without an event, because there were too many different ones."""
        self._lost = 0
        self._missed_at = 0.0

    def begin(self) -> None:
        """Packets are read from now on; which were dropped before is not known."""
        self._complete_from = self._clock()

    def lose(self, packets: int) -> None:
        """Packets were logged that never came here."""
        if packets:
            self._lost += packets
            self._missed_at = self._clock()

    @property
    def missed(self) -> int:
        """Packets without an event, because too many came at once."""
        return self.suppressed + self._lost

    def completeness(self) -> dict[str, float]:
        """``goesBackSeconds``: for how long all events are kept. ``missed``: packets without an event because too
        many came at once, the last one ``missedSecondsAgo``.
        """
        now = self._clock()
        found = {"goesBackSeconds": round(now - self._complete_from, 3)}
        if self.missed:
            found |= {"missed": self.missed, "missedSecondsAgo": round(now - self._missed_at, 3)}
        return found

    def note(self, packets: Sequence[LoggedPacket]) -> None:
        """Take logged packets; those of other programs' rules are ignored."""
        self.close_due()
        for packet in packets:
            self._metrics.deny_packets.inc()
            self._note(packet)

    def _note(self, packet: LoggedPacket) -> None:
        ours = drop_of(packet)
        if ours is None:
            return
        drop, header = ours
        # An address may have gone to another pod since the last packet.
        key = (*event_key(drop, header), *self._describer.pods_of(header))
        held = self._open.get(key)
        if held is not None:
            held.count += 1
            held.until = max(held.until, packet.time)
            held.last = self._clock()
            return
        if not self._events_allowed.take():
            self.suppressed += 1
            self._missed_at = self._clock()
            self._metrics.deny_suppressed.inc()
            return
        event = self._describer.event(self._next_id, packet, drop, header)
        self._next_id += 1
        now = self._clock()
        self._open[key] = _Open(event, now + WINDOW, 1, packet.time, now)

    def next_due(self) -> float | None:
        """The time by the clock when the next event is to be closed, or None without an open event."""
        return next((held.close_at for held in self._open.values()), None)

    def close_due(self) -> None:
        """Close the events whose window has ended."""
        now = self._clock()
        while self._open:
            held = next(iter(self._open.values()))
            if held.close_at > now:
                return
            self._open.popitem(last=False)
            self._close(held)

    def close_all(self) -> None:
        """Close all events, at the agent's end."""
        while self._open:
            self._close(self._open.popitem(last=False)[1])

    def _close(self, held: _Open) -> None:
        event = held.so_far()
        if len(self._closed) >= KEPT:
            self._complete_from = max(self._complete_from, self._closed.popleft().at)
        self._closed.append(_Closed(event, min(self._clock(), held.close_at), held.last))
        for follower in self._followers:
            if follower.full():
                follower.get_nowait()
                follower.dropped += 1
            follower.put_nowait(event)
        if self.lines:
            self._write_line(event)

    def _write_line(self, event: DenyEvent) -> None:
        if not self._lines_allowed.take():
            self._lines_left_out += 1
            return
        left_out, self._lines_left_out = self._lines_left_out, 0
        values = msgspec.to_builtins(event)
        for doubled in ("time", "node"):  # every log line has its own
            values.pop(doubled, None)
        if event.endpoint:
            values["pod"] = values.pop("endpoint")
        if left_out:
            values["lines_left_out"] = left_out
        self._log.info("denied", **values)

    @property
    def last_id(self) -> int:
        """The id of the newest event."""
        return self._next_id - 1

    def events(self, *, closed: bool = False, within: float | None = None) -> list[DenyEvent]:
        """The newest events, oldest first; open ones, in their present state, unless ``closed``.

        ``within``: only those whose last packet is no older, in seconds.
        """
        self.close_due()
        since = 0.0 if within is None else self._clock() - within
        found = [one.event for one in self._closed if within is None or one.last >= since]
        if not closed:
            found += [held.so_far() for held in self._open.values()]
        return found

    def recent(self, pairs: int = 3) -> dict[str, Any]:
        """The last minute for ``/status``: packets that events have, and the pairs with most of them.

        Packets that the kernel's rate limit or ours left out are not among them; the metrics count all.
        """
        self.close_due()
        since = self._clock() - RECENT
        events = [one.event for one in self._closed if one.at >= since]
        events += [held.so_far() for held in self._open.values()]
        counts: Counter[tuple[str, str]] = Counter()
        for event in events:
            counts[pair_of(event)] += event.count
        top = [{"source": a, "destination": b, "packets": n} for (a, b), n in counts.most_common(pairs)]
        return {"packets": counts.total(), "pairs": len(counts), "top": top}

    @contextmanager
    def follow(self) -> Iterator[Follower]:
        """A queue of events that close from now on; when full, it drops the oldest. Raises TooManyFollowers."""
        if len(self._followers) >= _MOST_FOLLOWERS:
            raise TooManyFollowers(f"{_MOST_FOLLOWERS} already follow the deny log of this node")
        queue = Follower(_FOLLOWER_BACKLOG)
        self._followers.add(queue)
        try:
            yield queue
        finally:
            self._followers.discard(queue)
