"""The versioned store: objects in memory, one global resourceVersion, and a bounded log of what happened.

No clock, no sockets. The log answers "what came after version N" for watches and "what was there at
version N" for consistent paging; a version it no longer reaches is Expired, as after etcd's compaction.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import attrgetter

import msgspec

from lab.apiserver.errors import expired
from lab.apiserver.journal import Journal, ObjectKey
from lab.apiserver.kinds import GroupResource, Obj

_FIRST = ("apiVersion", "kind", "metadata")

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode


class EventType(enum.StrEnum):
    """``type`` of a watch event."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of one object. ``obj`` must not be changed: it is shared with the log and with readers."""

    key: ObjectKey
    obj: Obj
    version: int
    raw: bytes

    def copy(self) -> Obj:
        """A private copy (decoding is several times faster than deepcopy)."""
        copy: Obj = decode(self.raw)
        return copy


@dataclass(frozen=True, slots=True)
class Event:
    """What happened at ``version``. ``after`` is the object; for DELETED its last state with that version."""

    version: int
    type: EventType
    after: Stored
    before: Stored | None


@dataclass(slots=True)
class _Shelf:
    """All objects of one resource, and its part of the log. ``since``: the log holds all that came later."""

    since: int
    objects: dict[ObjectKey, Stored] = field(default_factory=dict)
    log: deque[Event] = field(default_factory=deque)
    per_namespace: Counter[str] = field(default_factory=Counter)


class Store:
    """Objects by resource. ``start`` is the first resourceVersion; ``log_size`` bounds the log per resource."""

    def __init__(self, start: int, log_size: int = 20_000, journal: Journal | None = None) -> None:
        """``journal``: where every change is kept, and what it has kept is here from the start."""
        kept = journal.load() if journal else []
        self._start = max([start, *(one.version for one in kept)])
        self._version = self._start
        self._log_size = log_size
        self._journal = journal
        self._shelves: dict[GroupResource, _Shelf] = {}
        self._listeners: list[Callable[[GroupResource], None]] = []
        for one in kept:
            shelf = self._shelf(one.resource)
            shelf.objects[one.key] = Stored(one.key, one.obj, one.version, encode(one.obj))
            shelf.per_namespace[one.key[0]] += 1

    @property
    def version(self) -> int:
        """The resourceVersion of the latest change."""
        return self._version

    def subscribe(self, listener: Callable[[GroupResource], None]) -> None:
        """Call ``listener`` after each change with the resource it was in."""
        self._listeners.append(listener)

    def get(self, resource: GroupResource, key: ObjectKey) -> Stored | None:
        """The object now, or None."""
        return self._shelf(resource).objects.get(key)

    def list(self, resource: GroupResource, namespace: str = "", at: int | None = None) -> list[Stored]:
        """The objects in key order; ``at`` an earlier version (410 when the log no longer reaches it)."""
        objects = self._shelf(resource).objects
        if at is not None and at != self._version:
            objects = self._rewound(resource, at)
        chosen: Iterable[Stored] = objects.values()
        if namespace:
            chosen = (stored for stored in chosen if stored.key[0] == namespace)
        return sorted(chosen, key=attrgetter("key"))

    def has_any(self, resource: GroupResource, namespace: str) -> bool:
        """Is there an object of the resource in the namespace?"""
        return self._shelf(resource).per_namespace[namespace] > 0

    def _rewound(self, resource: GroupResource, at: int) -> dict[ObjectKey, Stored]:
        shelf = self._shelf(resource)
        if not shelf.since <= at <= self._version:
            raise expired(
                "The provided continue parameter is too old to display a consistent list result. "
                "You must start a new list without the continue parameter."
            )
        objects = dict(shelf.objects)
        for event in reversed(shelf.log):
            if event.version <= at:
                break
            if event.before is None:
                del objects[event.after.key]
            else:
                objects[event.before.key] = event.before
        return objects

    def put(self, resource: GroupResource, key: ObjectKey, obj: Obj) -> Stored:
        """Add or replace; sets metadata.resourceVersion on ``obj``, which from now on belongs to the store."""
        shelf = self._shelf(resource)
        before = shelf.objects.get(key)
        stored = self._stamp(key, obj)
        self._keep(resource, key, stored.raw)
        shelf.objects[key] = stored
        kind = EventType.MODIFIED
        if before is None:
            kind = EventType.ADDED
            shelf.per_namespace[key[0]] += 1
        self._record(resource, Event(stored.version, kind, stored, before))
        return stored

    def remove(self, resource: GroupResource, key: ObjectKey) -> Stored:
        """Remove; returns the last state, stamped with the version of the removal. KeyError if absent."""
        shelf = self._shelf(resource)
        before = shelf.objects[key]
        self._keep(resource, key, None)
        del shelf.objects[key]
        shelf.per_namespace[key[0]] -= 1
        last = self._stamp(key, before.copy())
        self._record(resource, Event(last.version, EventType.DELETED, last, before))
        return last

    def events(self, resource: GroupResource, after: int) -> Sequence[Event]:
        """All events later than ``after``; 410 when some of them are no longer known, or never happened yet."""
        shelf = self._shelf(resource)
        if after < shelf.since:
            raise expired(f"too old resource version: {after} ({shelf.since})")
        if after > self._version:
            raise expired(f"resource version in the future: {after} (now at {self._version})")
        news = list(takewhile(lambda event: event.version > after, reversed(shelf.log)))
        news.reverse()
        return news

    def _stamp(self, key: ObjectKey, obj: Obj) -> Stored:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        ordered = {name: obj[name] for name in _FIRST} | obj
        return Stored(key, ordered, self._version, encode(ordered))

    def _keep(self, resource: GroupResource, key: ObjectKey, raw: bytes | None) -> None:
        """Before it is true for anybody.

        Raises:
            OSError: the disk is full.
        """
        if self._journal is None:
            return
        self._journal.append(resource, key, raw)
        if self._journal.is_long:
            self._journal.rewrite(self._everything())

    def _everything(self) -> Iterator[tuple[GroupResource, ObjectKey, bytes]]:
        for resource, shelf in self._shelves.items():
            for key, stored in shelf.objects.items():
                yield resource, key, stored.raw

    def _record(self, resource: GroupResource, event: Event) -> None:
        shelf = self._shelf(resource)
        shelf.log.append(event)
        if len(shelf.log) > self._log_size:
            shelf.since = shelf.log.popleft().version
        for listener in self._listeners:
            listener(resource)

    def _shelf(self, resource: GroupResource) -> _Shelf:
        shelf = self._shelves.get(resource)
        if shelf is None:
            shelf = self._shelves[resource] = _Shelf(since=self._start)
        return shelf
