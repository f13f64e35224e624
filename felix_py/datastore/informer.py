"""A thread per kind that keeps its table equal to the API server's, across all failures of a watch.

A conversation is a list (or the initial list of a WatchList) followed by a watch from the list's resourceVersion.
The next conversation resumes from the last version seen, or relists if the server has compacted that version
(410) or sent something undecodable. The table turns a list into differences, so relisting is always correct and
not visible to consumers. Events out of order also cause a relist: the last event of an object may not be its
state.

A silent watch is not dead: a kind may be quiet, and bookmarks come only with a newer version. TCP keepalive
checks its connection (:mod:`felix_py.datastore.client`), a request of its own checks the server
(:mod:`felix_py.datastore.probe`), and the timeout requested from the server limits its life.

An optional kind is a custom resource. While its CustomResourceDefinition is not installed, the server answers
404; once believed (:mod:`felix_py.datastore.absence`), that counts as a complete and empty list.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from msgspec import Struct

from felix_py import log
from felix_py.backoff import Backoff
from felix_py.datastore.absence import DEFINITIONS, Belief, Definition, Discovery, Word
from felix_py.datastore.bridge import Bridge, Closed
from felix_py.datastore.client import Answer, Api, ApiError, Unreachable
from felix_py.datastore.clock import Clock, SystemClock
from felix_py.datastore.decode import Gone, Kind, Unreadable, Unusable, WatchEvent
from felix_py.datastore.outage import SAYS_NOTHING_OF_REQUEST, Outage, Rest, Retry
from felix_py.datastore.store import Mark
from felix_py.resource_version import is_older

R = TypeVar("R")

Sink = Callable[[Sequence["R | Gone | Unusable | Mark"]], None]
"""Takes a source's items, in order, on the event loop (:meth:`felix_py.datastore.store.Table.apply`)."""

PAGE = 500
"""Limit of a list request: bounds the memory of both sides."""

_WATCH_LIST_TRIES = 2
"""WatchLists that may end before their list is complete; afterwards pages are listed. Some servers and proxies
accept a WatchList and never finish it."""

_STOP_TIMEOUT = 2.0

_COMES = 0.3
"""Greatest random delay in seconds before a request for a kind whose CRD has appeared; it grows on 404."""

_RARELY = 20.0
"""Times ``Timing.absent``: the longest interval of discovery for a kind whose CRD may not be watched."""

_ASK_LATER = frozenset({401, 403, 429, 503})
"""Refusals of a WatchList that a list would get as well."""


class Timing(Struct, frozen=True, kw_only=True):
    """All in seconds.

    ``answer``: timeout of a request's first byte, and between bytes of a list. ``silence``: a watch without a
    byte for so long has the server probed, with timeout ``probe``. ``recycle``: least and greatest lifetime of a
    watch; the next one uses a new connection and rereads credentials and CA. ``grace``: by how much the server
    may exceed the lifetime. ``healthy``: the end of a watch that lived this long is no failure. ``retry``: first
    and longest mean delay between tries of a kind. ``lost``: the same between those of all kinds together, while
    the server does not answer (:mod:`felix_py.datastore.outage`). ``absent``: first interval of discovery for an
    absent optional kind whose CRD may not be watched. ``refused``: between the first and the last refusal to let
    us see a kind, until it counts: a server that has just started lets nobody see anything for a moment.
    """

    answer: float = 60.0
    silence: float = 90.0
    probe: float = 10.0
    recycle: tuple[float, float] = (300.0, 600.0)
    grace: float = 30.0
    healthy: float = 10.0
    retry: tuple[float, float] = (0.8, 30.0)
    lost: tuple[float, float] = (0.8, 10.0)
    absent: float = 15.0
    refused: float = 5.0


class Absent(Exception):
    """The server does not have this optional kind. ``retry_in``: seconds until the next request for it."""

    def __init__(self, words: str = "", retry_in: float = 0.0) -> None:
        super().__init__(words)
        self.retry_in = retry_in


class Reflector(Generic[R]):
    """Feeds a sink with all objects of one kind until stopped. Call ``start`` and ``stop`` on the event loop."""

    def __init__(
        self,
        api: Api,
        kind: Kind[R],
        timing: Timing | None = None,
        clock: Clock | None = None,
        discovery: Discovery | None = None,
        outage: Outage | None = None,
        *,
        in_force: bool = False,
    ) -> None:
        """``in_force``: objects of this kind may be in force already, so its absence needs stronger evidence.

        ``discovery`` and ``outage`` are shared by the kinds of one server.
        """
        self.kind = kind
        self._api = api
        self._timing = timing or Timing()
        self._clock = clock or SystemClock()
        self._log = log.get("informer").bind(kind=kind.name)
        outage = outage or Outage(self._timing.lost, self._clock)
        self._retry = Retry(self._timing.retry, outage)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"informer-{kind.name}", daemon=True)
        self._bridge: Bridge[R | Gone | Unusable | Mark] | None = None
        self._answer: Answer | None = None
        self._answer_lock = threading.Lock()
        self._alive = self._current = self._clock.now()
        self._version = ""
        self._watching_since: float | None = None
        self._ended_in_time = False
        self._incomplete = 0
        self._definition = Definition(kind) if kind.optional else None
        self._discovery = discovery or Discovery(api, self._clock)
        self._belief = Belief(self._clock)
        self._looks = Backoff(self._timing.absent, self._timing.absent * _RARELY)
        self._comes = Backoff(_COMES, self._timing.absent * _RARELY)
        self._present: bool | None = None
        self._in_force = in_force
        self._refused_since: float | None = None
        self._refused_last = 0.0

    # --- on the event loop ---------------------------------------------------------------------------

    def start(self, sink: Sink[R]) -> None:
        """Begin, and call ``sink`` on the running event loop."""
        self._bridge = Bridge(asyncio.get_running_loop(), sink)
        self._thread.start()

    async def stop(self) -> None:
        """End; ``sink`` is not called afterwards. A request whose answer has not begun is left to its timeout."""
        self._stop.set()
        self._retry.close()
        if self._bridge is None:
            return
        self._bridge.close()
        with self._answer_lock:
            if self._answer is not None:
                self._answer.interrupt()
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT)

    def age(self) -> float:
        """Seconds since the table was last known to be up to date, or the kind to be absent. Any thread.

        Answers that do not get it there do not count: half a list, or a watch that the server ends at once.
        """
        return self._clock.now() - self._current

    @property
    def refused(self) -> bool:
        """Whether the server does not let us see this kind, and still has not after ``Timing.refused``. Any
        thread."""
        since = self._refused_since
        return since is not None and self._refused_last - since >= self._timing.refused

    def silent(self) -> Answer | None:
        """The watch that has been silent for too long, or None. Any thread."""
        with self._answer_lock:
            return self._answer if self._clock.now() - self._alive >= self._timing.silence else None

    def vouch(self, answer: Answer) -> None:
        """Count a silent watch as alive: its server has answered a probe. Any thread."""
        with self._answer_lock:
            if self._answer is answer:
                self._heard(current=bool(self._version))

    def _heard(self, *, current: bool = False) -> None:
        """Note a sign of life of the server. ``current``: the table has all that the server has told."""
        self._alive = self._clock.now()
        if current or self._present is False:
            self._current = self._alive

    def give_up(self, answer: Answer) -> None:
        """End a watch whose server does not answer. Any thread."""
        with self._answer_lock:
            if self._answer is answer:
                answer.interrupt()

    # --- in the thread: between conversations --------------------------------------------------------

    def _run(self) -> None:
        rest = Rest(0.0)
        try:
            while not self._retry.wait(rest):
                self._watching_since = None
                rest = self._next_rest(self._converse())
        except Closed:
            return

    def _converse(self) -> Exception | None:
        """One conversation; returns the error that ended it, or None after a clean end of the watch."""
        try:
            try:
                self._list_and_watch()
            except Absent as error:
                self._while_absent(str(error))
        except Closed:
            raise
        except Absent as error:
            return error
        except (ApiError, Unreachable, Unreadable) as error:
            self._belief.reset()
            return error
        except Exception as error:
            # A defect: the thread must live on, and a relist restores consistency.
            self._log.exception("defect in the informer")
            self._version = ""
            return error
        return None

    def _next_rest(self, failure: Exception | None) -> Rest:
        if self._stop.is_set():
            raise Closed
        if isinstance(failure, ApiError) and failure.status in (401, 403):
            self._refused_last = self._clock.now()
            self._refused_since = self._refused_since or self._refused_last
        else:
            self._refused_since = None
        if isinstance(failure, Absent):
            return Rest(failure.retry_in)
        if self._watched_well():
            self._renew()
            if self._clock.now() - self._alive < self._timing.silence:  # else it may have been dead
                self._heard(current=bool(self._version))
            if failure is None:
                return Rest(0.0)
        rest = self._retry.after(failure)
        reason = str(failure) if failure else "the server ended the watch as soon as it began"
        retry_in = "as soon as it answers" if rest.delay is None else round(rest.delay, 1)
        self._log.warning("watch interrupted", reason=reason, retry_in=retry_in, age=round(self.age(), 1))
        return rest

    def _watched_well(self) -> bool:
        since = self._watching_since
        return since is not None and self._clock.now() - since >= self._timing.healthy

    def _renew(self) -> None:
        """Reset after a successful watch: the next one may meet another server."""
        self._retry.renew()
        self._incomplete = 0
        self._api.renew()

    # --- in the thread: a kind that is not there -----------------------------------------------------

    def _while_absent(self, words: str) -> None:
        """After a 404: decide whether to believe it, and wait for its installation. Always raises Absent."""
        self._version = ""
        self._heard()
        word, version = self._ask_definition()
        if self._present is not False and not self._belief.told(word, doubt=self._in_force):
            delay = self._belief.delay()
            self._log.info("the server says that it has no such kind; asking again", definition=word.name)
            raise Absent(words, delay)
        self._note_absence(word)
        if word is Word.SERVED:
            raise Absent(words, self._comes.delay())
        if word is Word.NOT_SERVED:
            self._comes.reset()
            word = self._await_definition(version)
        if word is Word.UNKNOWN:
            self._await_discovery()
        raise Absent(words, random.uniform(0, _COMES))  # all agents notice at once

    def _ask_definition(self) -> tuple[Word, str]:
        """What the CRD says now, and as of which resourceVersion."""
        assert self._definition is not None
        try:
            with self._get(DEFINITIONS, self._definition.query) as answer:
                return self._definition.listed(answer.read())
        except ApiError as error:
            return self._unknown(error), ""

    def _unknown(self, error: ApiError) -> Word:
        """UNKNOWN if the CRD may not be read, or the server has no CRDs; raises any other error."""
        if error.status in (401, 403, 404):
            return Word.UNKNOWN
        raise error

    def _await_definition(self, version: str) -> Word:
        """Watch the CRD from a list's version until it serves the kind; UNKNOWN if it cannot be watched.

        Not without a version: kube-apiserver refuses that where its etcd cannot report progress (before 3.4.25).
        """
        assert self._definition is not None
        while True:
            lifetime = random.uniform(*self._timing.recycle)
            self._watching_since = self._clock.now()
            query = self._definition.query | _watch_query(lifetime) | {"resourceVersion": version}
            try:
                with self._get(DEFINITIONS, query) as answer:
                    for lines in self._lines(answer, lifetime):
                        words = [self._definition.event(line) for line in lines]
                        if Word.SERVED in words:
                            return Word.SERVED
            except ApiError as error:
                return self._unknown(error)
            if not self._watched_well():
                raise Unreachable("the server ended the watch of a definition as soon as it began")
            self._renew()
            word, version = self._ask_definition()
            if word is not Word.NOT_SERVED:
                return word

    def _await_discovery(self) -> None:
        """Poll the group's discovery document until it has the kind's version."""
        assert self._definition is not None
        while True:
            delay = self._looks.delay()
            if self._clock.wait(delay, self._stop):
                raise Closed
            served = self._discovery.serves(self._definition.group, self._definition.version, delay / 2)
            self._heard()
            if served:
                return

    def _note_absence(self, word: Word) -> None:
        """Deliver an empty list."""
        if self._present is not False:
            self._log.info("not installed on this server", definition=word.name)
            self._put([Mark.LIST_BEGIN, Mark.LIST_END])
        self._present = self._in_force = False
        self._heard()

    def _note_presence(self) -> None:
        if self._present is False:
            self._log.info("installed on this server by now")
        self._present = self._in_force = True
        self._belief.reset()
        self._looks.reset()

    # --- in the thread: one conversation -------------------------------------------------------------

    def _list_and_watch(self) -> None:
        sure, self._ended_in_time = self._ended_in_time, False
        if self._version and not sure:
            self._confirm()
        if not self._version:
            if self._incomplete < _WATCH_LIST_TRIES and self._watch_list():
                return
            self._list()
        self._watch()

    def _confirm(self) -> None:
        """Check that the server knows the version from which the watch is to resume.

        If its store was restored from a backup, it counts from an earlier version, with another history. A watch
        from a future version is silent until the server reaches it, but a list that must not be older is refused
        at once (ResourceVersionTooLarge).
        """
        query = {"limit": "1", "resourceVersion": self._version, "resourceVersionMatch": "NotOlderThan"}
        try:
            with self._ask(query) as answer:
                answer.read()
        except ApiError as error:
            if error.reason != "ResourceVersionTooLarge":
                raise
            self._log.warning("the server's history has begun anew: listing everything", reason=str(error))
            self._version = ""

    def _watch_list(self) -> bool:
        """List and watch in one request (KEP-3157); false if the server does not support that.

        Such a server refuses the request or, if its store lacks support (etcd before 3.4.25 and 3.5.8), answers
        200 and an ERROR event. The caller then lists at once.
        """
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
            complete = self._watching_since is not None
            if complete or error.status in (_ASK_LATER if begun else SAYS_NOTHING_OF_REQUEST):
                raise
            self._log.info("no WatchList on this server, listing in pages", reason=str(error))
            self._incomplete = _WATCH_LIST_TRIES
            return False
        return True

    def _list(self) -> None:
        """List page by page. An expired continue token fails the list, and it starts over."""
        self._put([Mark.LIST_BEGIN])
        version = token = ""
        while True:
            query = {"limit": str(PAGE)} | ({"continue": token} if token else {})
            with self._ask(query) as answer:
                page = self.kind.listing(answer.read())
            self._heard()
            self._put(page.found)
            # The first page's version: with a later, newer one, changes to earlier pages would be missed.
            version = version or page.resource_version
            token = page.continue_token
            if not token:
                break
        if not version:
            raise Unreadable("a list without resourceVersion")
        self._heard(current=True)
        self._put([Mark.LIST_END])
        self._version = version

    def _watch(self) -> None:
        lifetime = random.uniform(*self._timing.recycle)
        try:
            with self._ask(_watch_query(lifetime) | {"resourceVersion": self._version}) as answer:
                self._watching_since = self._clock.now()
                self._follow(answer, lifetime)
        except ApiError as error:
            if error.reason == "ResourceVersionTooLarge" or error.status not in SAYS_NOTHING_OF_REQUEST:
                self._version = ""
            raise

    def _follow(self, answer: Answer, lifetime: float) -> None:
        """Process a watch until it ends."""
        begun = self._clock.now()
        for lines in self._lines(answer, lifetime):
            try:
                self._take([self.kind.change(line) for line in lines])
            except (ApiError, Unreadable):
                # An ERROR event, or a change that is lost because it cannot be decoded: relist.
                self._version = ""
                raise
        self._ended_in_time = self._clock.now() - begun >= lifetime - 1

    def _lines(self, answer: Answer, lifetime: float) -> Iterator[list[bytes]]:
        """The lines of a watch, until it ends or exceeds its lifetime and grace."""
        deadline = self._clock.now() + lifetime + self._timing.grace
        answer.patience(lifetime + self._timing.grace)
        for lines in answer.lines():
            self._heard()
            yield lines
            if self._alive > deadline:
                return

    def _take(self, changes: list[WatchEvent[R]]) -> None:
        """Hand changes over, and only then record their version as seen."""
        found: list[R | Gone | Unusable | Mark] = []
        complete = False
        version = ""
        for change in changes:
            if self._version and isinstance(change.what, Unusable) and not change.what.key[1]:
                # The changed object is unknown: only a relist tells which objects are still usable.
                raise Unreadable(f"an event of an object without a readable name: {change.what.reason}")
            if (self._version or complete) and is_older(change.resource_version, version or self._version):
                raise Unreadable(
                    f"an event of version {change.resource_version} after {version or self._version}"
                )
            if change.what is not None:
                found.append(change.what)
            if change.initial_end and not self._version:
                found.append(Mark.LIST_END)
                complete = True
            version = change.resource_version or version
        if complete:
            self._incomplete = 0
            self._watching_since = self._clock.now()
        # The initial list of a WatchList is not ordered by version.
        seen = version if complete or self._version else ""
        if seen:
            self._heard(current=True)
        self._put(found)
        self._version = seen or self._version

    def _put(self, items: Sequence[R | Gone | Unusable | Mark]) -> None:
        assert self._bridge is not None
        if items:
            self._bridge.put(items)

    @contextmanager
    def _ask(self, query: dict[str, str]) -> Iterator[Answer]:
        with self._get(self.kind.path, self.kind.query | query, may_be_absent=self.kind.optional) as answer:
            self._refused_since = None
            self._note_presence()
            yield answer

    @contextmanager
    def _get(self, path: str, query: dict[str, str], *, may_be_absent: bool = False) -> Iterator[Answer]:
        """Send a GET; ``stop`` can interrupt the reading of its answer."""
        try:
            answer = self._api.request("GET", path, query, read_timeout=self._timing.answer)
        except (ApiError, Unreachable) as error:
            self._retry.refused(error)
            if isinstance(error, ApiError) and error.status == 404 and may_be_absent:
                raise Absent(str(error)) from error
            raise
        self._retry.answered()
        with answer:
            self._heard()
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
    return {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(lifetime)))}
