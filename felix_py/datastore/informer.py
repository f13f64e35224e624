"""A thread that keeps one kind's table equal to the API server's, through everything that can happen to a watch.

A conversation with the server is a list (or the listing part of a WatchList) followed by a watch from the list's
resourceVersion. Whatever ends it, the next one either goes on from the last version seen or, where the server has
forgotten that version or sent what cannot be understood, starts with a list again. The table makes differences
out of a list, so starting again is always right and never visible to consumers.

An optional kind is one of a CustomResourceDefinition. Where it is not installed the server answers 404: that
counts as a complete and empty list, and the server is asked again every so often.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from felix_py import log
from felix_py.datastore.backoff import Backoff, Clock, SystemClock
from felix_py.datastore.bridge import Bridge, Closed
from felix_py.datastore.client import Answer, Api, ApiError, Unreachable
from felix_py.datastore.decode import Change, Gone, Kind, Unreadable, Unusable
from felix_py.datastore.store import Mark

R = TypeVar("R")

Sink = Callable[[Sequence["R | Gone | Unusable | Mark"]], None]
"""Takes what a source found, in order, on the event loop (:meth:`felix_py.datastore.store.Table.apply`)."""

PAGE = 500
"""Objects a list request asks for: bounds the memory of both sides."""

_WATCH_LIST_TRIES = 2
"""WatchLists that may end before their list is complete; from then on pages are listed. There are servers, and
proxies in between, that accept one and never finish it."""

_GRACE = 30.0
"""Seconds that a server may be late in ending a watch before we do."""

_STOP_TIMEOUT = 2.0

_ABSENCES = 2
"""Answers in a row that a kind is not installed, until that is believed of one that was: a server that is about
to start may say so for a moment, and no policy may be lost by that."""

_SAYS_NOTHING_OF_REQUEST = frozenset({401, 403, 429, 500, 502, 503, 504})
"""Refusals that concern us or the server's health, not what was asked for: the same request may work later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All seconds.

    ``start_jitter``: the first request waits up to this, so that a rollout does not reach the API server at once.
    ``silence``: an answer without a byte for this long is dead; must be above the server's bookmark interval
    (one minute). ``recycle``: a watch is ended and begun anew, on a new connection with credentials and CA read
    again, after a time between these two. ``healthy``: a watch that lived this long was a success, and its end is
    no failure. ``retry``: first and longest delay between tries. ``absent``: an optional kind that is not
    installed is looked for again after about this long.
    """

    start_jitter: float = 1.0
    silence: float = 90.0
    recycle: tuple[float, float] = (300.0, 600.0)
    healthy: float = 10.0
    retry: tuple[float, float] = (0.8, 30.0)
    absent: float = 15.0


class Absent(Exception):
    """The server does not have this optional kind."""


class Reflector(Generic[R]):
    """Keeps a sink fed with all objects of one kind until stopped.

    ``start`` and ``stop`` belong to the event loop, ``age`` to anybody.
    """

    def __init__(self, api: Api, kind: Kind[R], timing: Timing | None = None, clock: Clock | None = None) -> None:
        self.kind = kind
        self._api = api
        self._timing = timing or Timing()
        self._clock = clock or SystemClock()
        self._log = log.get("informer").bind(kind=kind.name)
        self._backoff = Backoff(*self._timing.retry)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"informer-{kind.name}", daemon=True)
        self._bridge: Bridge[R | Gone | Unusable | Mark] | None = None
        self._answer: Answer | None = None
        self._answer_lock = threading.Lock()
        self._alive = self._clock.now()
        self._version = ""
        self._watching_since: float | None = None
        self._incomplete = 0
        self._present: bool | None = None
        self._absences = 0

    # --- on the event loop ---------------------------------------------------------------------------

    def start(self, sink: Sink[R]) -> None:
        """Begin, and call ``sink`` on the running event loop from now on."""
        self._bridge = Bridge(asyncio.get_running_loop(), sink)
        self._thread.start()

    async def stop(self) -> None:
        """End; nothing reaches the sink any more. A request whose answer has not begun is left to its timeout."""
        self._stop.set()
        if self._bridge is None:
            return
        self._bridge.close()
        with self._answer_lock:
            if self._answer is not None:
                self._answer.interrupt()
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT)

    def age(self) -> float:
        """Seconds since the server last said anything: a byte of a list or of a watch, bookmarks too."""
        return self._clock.now() - self._alive

    # --- in the thread: between conversations --------------------------------------------------------

    def _run(self) -> None:
        delay = random.uniform(0, self._timing.start_jitter)
        try:
            while not self._clock.wait(delay, self._stop):
                self._watching_since = None
                delay = self._next_delay(self._converse())
        except Closed:
            return

    def _converse(self) -> Exception | None:
        """One conversation; returns what ended it, None if that was a clean end of the watch."""
        try:
            self._list_and_watch()
        except Closed:
            raise
        except Absent as error:
            self._note_absence()
            return error
        except (ApiError, Unreachable, Unreadable) as error:
            return error
        except Exception as error:
            # A defect of ours: the thread must live on, and a list brings back certainty.
            self._log.exception("defect in the informer")
            self._version = ""
            return error
        return None

    def _next_delay(self, failure: Exception | None) -> float:
        if self._stop.is_set():
            raise Closed
        if isinstance(failure, Absent):
            return self._timing.absent * random.uniform(0.5, 1.5)
        now = self._clock.now()
        if self._watching_since is not None and now - self._watching_since >= self._timing.healthy:
            self._backoff.reset()
            self._api.renew()
            if failure is None:
                return 0.0
        delay = self._backoff.delay(failure.retry_after if isinstance(failure, ApiError) else 0.0)
        reason = str(failure) if failure else "the server ended the watch as soon as it began"
        self._log.warning("watch interrupted", reason=reason, retry_in=round(delay, 1), age=round(self.age(), 1))
        return delay

    def _note_absence(self) -> None:
        """The server does not have the kind: a full list of nothing, unless that may be a passing word."""
        self._alive = self._clock.now()
        self._version = ""
        self._absences += 1
        if self._present and self._absences < _ABSENCES:
            self._log.warning("the server says that it no longer has this kind; asking once more")
            return
        if self._present is not False:
            self._log.info("not installed on this server; looking again", every=self._timing.absent)
            self._put([Mark.LIST_BEGIN, Mark.LIST_END])
        self._present = False

    def _note_presence(self) -> None:
        if self._present is False:
            self._log.info("installed on this server by now")
        self._present = True
        self._absences = 0

    # --- in the thread: one conversation -------------------------------------------------------------

    def _list_and_watch(self) -> None:
        if not self._version:
            if self._incomplete < _WATCH_LIST_TRIES and self._watch_list():
                return
            self._list()
        self._watch()

    def _watch_list(self) -> bool:
        """List and watch in one request; false where the server does not know this way (KEP-3157)."""
        lifetime = random.uniform(*self._timing.recycle)
        query = _watch_query(lifetime) | {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        begun = False
        try:
            with self._ask(query) as answer:
                begun = True
                self._incomplete += 1
                self._put([Mark.LIST_BEGIN])
                self._follow(answer, lifetime)
        except ApiError as error:
            if begun or error.status in _SAYS_NOTHING_OF_REQUEST:
                raise
            self._log.info("no WatchList on this server, listing in pages", reason=str(error))
            self._incomplete = _WATCH_LIST_TRIES
            return False
        return True

    def _list(self) -> None:
        """List page by page. A page token that expired meanwhile means starting over."""
        self._put([Mark.LIST_BEGIN])
        version = token = ""
        while True:
            query = {"limit": str(PAGE)} | ({"continue": token} if token else {})
            with self._ask(query) as answer:
                page = self.kind.listing(answer.read())
            self._alive = self._clock.now()
            self._put(page.found)
            # The first page's version: were a later one newer, changes to what came before it would be missed.
            version = version or page.resource_version
            token = page.continue_token
            if not token:
                break
        if not version:
            raise Unreadable("a list without resourceVersion")
        self._put([Mark.LIST_END])
        self._version = version

    def _watch(self) -> None:
        lifetime = random.uniform(*self._timing.recycle)
        try:
            with self._ask(_watch_query(lifetime) | {"resourceVersion": self._version}) as answer:
                self._watching_since = self._clock.now()
                self._follow(answer, lifetime)
        except ApiError as error:
            if error.reason == "ResourceVersionTooLarge" or error.status not in _SAYS_NOTHING_OF_REQUEST:
                self._version = ""
            raise

    def _follow(self, answer: Answer, lifetime: float) -> None:
        """Take in a watch until it ends, or is older than the server was asked to let it become."""
        deadline = self._clock.now() + lifetime + _GRACE
        rest = b""
        for data in answer.chunks():
            self._alive = self._clock.now()
            *lines, rest = (rest + data).split(b"\n")
            try:
                self._take([self.kind.change(line) for line in lines if line])
            except (ApiError, Unreadable):
                # An ERROR event, or a change that we did not understand and so have lost: only a list helps.
                self._version = ""
                raise
            if self._alive > deadline:
                return
        if rest:
            raise Unreachable("the watch was cut off in the middle of an event")

    def _take(self, changes: list[Change[R]]) -> None:
        """Hand over, and only then count as seen."""
        found: list[R | Gone | Unusable | Mark] = []
        complete = False
        version = ""
        for change in changes:
            if change.what is not None:
                found.append(change.what)
            if change.initial_end and not self._version:
                found.append(Mark.LIST_END)
                complete = True
            version = change.resource_version or version
        if complete:
            self._incomplete = 0
            self._watching_since = self._clock.now()
        self._put(found)
        # Before the end of a WatchList's list the objects come in no order of their versions.
        if version and (complete or self._version):
            self._version = version

    def _put(self, items: Sequence[R | Gone | Unusable | Mark]) -> None:
        assert self._bridge is not None
        if items:
            self._bridge.put(items)

    @contextmanager
    def _ask(self, query: dict[str, str]) -> Iterator[Answer]:
        """Send a GET for the kind; the answer can be interrupted by ``stop`` while it is being read."""
        try:
            answer = self._api.request("GET", self.kind.path, query, read_timeout=self._timing.silence)
        except ApiError as error:
            if error.status == 404 and self.kind.optional:
                raise Absent(str(error)) from error
            raise
        with answer:
            self._alive = self._clock.now()
            self._note_presence()
            with self._answer_lock:
                self._answer = answer
            try:
                if self._stop.is_set():
                    raise Closed
                yield answer
            finally:
                with self._answer_lock:
                    self._answer = None


def _watch_query(lifetime: float) -> dict[str, str]:
    return {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(int(lifetime))}
