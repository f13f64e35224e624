"""Watches: cursors into the store's log, so that a slow client costs no memory and a lost one gets 410."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from lab.apiserver.errors import ApiError, forbidden, invalid_object
from lab.apiserver.kinds import GroupResource, Obj
from lab.apiserver.selectors import Matcher
from lab.apiserver.store import Event, EventType, Store, Stored, encode

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_BATCH = 256


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """Query parameters of a watch. ``initial`` is sendInitialEvents (None: absent); times in seconds."""

    version: int = 0
    bookmarks: bool = False
    initial: bool | None = None
    match: str = ""
    timeout: float = 1800.0
    bookmark_interval: float = 30.0

    def check(self) -> None:
        """422 for a combination the API forbids (KEP-3157)."""
        problems = []
        if self.initial is not None and self.match != "NotOlderThan":
            why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            problems.append(forbidden("resourceVersionMatch", why))
        if self.initial is None and self.match:
            why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            problems.append(forbidden("resourceVersionMatch", why))
        if self.initial and not self.bookmarks:
            why = "sendInitialEvents requires setting allowWatchBookmarks to true"
            problems.append(forbidden("sendInitialEvents", why))
        if problems:
            raise invalid_object("meta.k8s.io", "ListOptions", "", problems)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a watch is about: objects of one resource, in one namespace or all (empty), matching."""

    resource: GroupResource
    namespace: str = ""
    matcher: Matcher | None = None

    def takes(self, stored: Stored | None) -> bool:
        """Is this state of an object selected?"""
        if stored is None or (self.namespace and stored.key[0] != self.namespace):
            return False
        return self.matcher is None or self.matcher(stored.obj)

    def translate(self, event: Event) -> tuple[EventType, Stored] | None:
        """The event as a client sees it who knows only selected objects; None: nothing happened."""
        before = event.before is not None and self.takes(event.before)
        after = event.type is not EventType.DELETED and self.takes(event.after)
        if after:
            return (EventType.MODIFIED if before else EventType.ADDED), event.after
        return (EventType.DELETED, event.after) if before else None


class Hub:
    """Wakes the watches of a resource when it changes."""

    def __init__(self, store: Store) -> None:
        self._waiting: dict[GroupResource, set[asyncio.Event]] = {}
        store.subscribe(self._changed)

    def _changed(self, resource: GroupResource) -> None:
        for waiter in self._waiting.get(resource, ()):
            waiter.set()

    def join(self, resource: GroupResource) -> asyncio.Event:
        """An event that is set on every change until :meth:`leave`."""
        waiter = asyncio.Event()
        self._waiting.setdefault(resource, set()).add(waiter)
        return waiter

    def leave(self, resource: GroupResource, waiter: asyncio.Event) -> None:
        self._waiting[resource].discard(waiter)

    def wake(self, resource: GroupResource) -> None:
        """Wake the watches of a resource, so that they see that it is no longer served."""
        self._changed(resource)

    def wake_all(self) -> None:
        """Wake every watch, so that it sees that the server stops."""
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.set()


class Watch:
    """One watch. ``render`` makes the JSON of a selected object; ``bookmark`` that of a bookmark.

    ``served`` tells whether the resource still exists.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        selection: Selection,
        render: Callable[[Stored], bytes],
        bookmark: Callable[[int, bool], Obj],
        served: Callable[[], bool],
    ) -> None:
        self._store = store
        self._hub = hub
        self._selection = selection
        self._render = render
        self._bookmark = bookmark
        self._served = served
        self.stopping = False

    async def chunks(self, options: WatchOptions) -> AsyncIterator[bytes]:
        """The body of the answer, piece by piece; ends at the timeout, on 410, with its resource, on stopping."""
        loop = asyncio.get_running_loop()
        end = loop.time() + options.timeout
        next_bookmark = loop.time() + options.bookmark_interval
        resource = self._selection.resource
        waiter = self._hub.join(resource)
        try:
            position = options.version or self._store.version
            if options.initial or (options.initial is None and options.version == 0):
                known, position = self._known(options.version)
                for batch in _batches([_line(EventType.ADDED, self._render(item)) for item in known]):
                    yield batch
                if options.initial:
                    yield _line(EventType.BOOKMARK, encode(self._bookmark(position, True)))
            while not self.stopping and loop.time() < end:
                waiter.clear()
                events = self._store.events(resource, position)
                position = events[-1].version if events else self._store.version
                for batch in _batches(self._lines(events)):
                    yield batch
                if options.bookmarks and loop.time() >= next_bookmark:
                    yield _line(EventType.BOOKMARK, encode(self._bookmark(position, False)))
                    next_bookmark = loop.time() + options.bookmark_interval
                if not self._served():
                    break
                due = min(end, next_bookmark) if options.bookmarks else end
                await _wait(waiter, max(0.0, due - loop.time()))
        except ApiError as error:
            yield _line(EventType.ERROR, encode(error.status()))
        finally:
            self._hub.leave(resource, waiter)

    def _known(self, at_least: int) -> tuple[list[Stored], int]:
        """The selected objects of now, and the version of that; 410 for a version that was never reached."""
        if at_least > self._store.version:
            self._store.events(self._selection.resource, at_least)
        stored = self._store.list(self._selection.resource, self._selection.namespace)
        return [item for item in stored if self._selection.takes(item)], self._store.version

    def _lines(self, events: Sequence[Event]) -> list[bytes]:
        seen = (self._selection.translate(event) for event in events)
        return [_line(kind, self._render(stored)) for kind, stored in filter(None, seen)]


def _batches(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Few writes for many lines, without one huge one."""
    for start in range(0, len(lines), _BATCH):
        yield b"".join(lines[start : start + _BATCH])


async def _wait(waiter: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await waiter.wait()
    except TimeoutError:
        pass


def _line(kind: EventType, document: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (kind.value.encode(), document)
