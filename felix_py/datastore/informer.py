"""A thread that keeps one kind's table equal to the API server's, through everything that can happen to a watch.

A conversation with the server is a list (or the listing part of a WatchList) followed by a watch from the list's
resourceVersion. Whatever ends it, the next one either goes on from the last version seen or, where the server has
forgotten that version or sent what cannot be understood, starts with a list again. The table makes differences
out of a list, so starting again is always right and never visible to consumers. So it is after events that come
in another order than they happened: what the last one of an object says may not be how it is.

A watch that says nothing is not dead: a quiet kind has nothing to say, and bookmarks come only when there is a
newer version. Its connection is judged by TCP keepalive (:mod:`felix_py.datastore.client`), the server behind
it by a request of its own (:mod:`felix_py.datastore.probe`), and at the end by the time that the server was
asked to end it.

An optional kind is one of a CustomResourceDefinition. Where it is not installed the server answers 404: that
counts, once it is believed (:mod:`felix_py.datastore.absence`), as a complete and empty list.
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
from felix_py.backoff import Backoff
from felix_py.datastore.absence import DEFINITIONS, Belief, Definition, Discovery, Word
from felix_py.datastore.bridge import Bridge, Closed
from felix_py.datastore.client import Answer, Api, ApiError, Unreachable
from felix_py.datastore.clock import Clock, SystemClock
from felix_py.datastore.decode import Gone, Kind, Unreadable, Unusable, WatchEvent
from felix_py.datastore.store import Mark

R = TypeVar("R")

Sink = Callable[[Sequence["R | Gone | Unusable | Mark"]], None]
"""Takes what a source found, in order, on the event loop (:meth:`felix_py.datastore.store.Table.apply`)."""

PAGE = 500
"""Objects a list request asks for: bounds the memory of both sides."""

_WATCH_LIST_TRIES = 2
"""WatchLists that may end before their list is complete; from then on pages are listed. There are servers, and
proxies in between, that accept one and never finish it."""

_STOP_TIMEOUT = 2.0

_COMES = 0.3
"""Seconds within which a kind is asked for, once its definition is there; then less and less, if it is not
served."""

_RARELY = 20.0
"""Times ``Timing.absent``: the longest time between two looks for a kind whose definition may not be watched."""

_ASK_LATER = frozenset({401, 403, 429, 503})
"""Refusals of a WatchList that a list would get as well."""

_SAYS_NOTHING_OF_REQUEST = frozenset({401, 403, 429, 500, 502, 503, 504})
"""Refusals that concern us or the server's health, not what was asked for: the same request may work later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """All seconds.

    ``answer``: a request whose answer has not begun, or a list without a byte, for so long is given up.
    ``silence``: after so long without a byte of a watch, the server is asked whether it is there, and has
    ``probe`` to answer. ``recycle``: a watch is ended and begun anew, on a new connection with credentials and
    CA read again, after a time between these two; the server may be late by ``grace``. ``healthy``: a watch
    that lived this long was a success, and its end is no failure. ``retry``: first and longest delay between
    tries. ``absent``: an optional kind that is not installed, and whose definition may not be watched, is
    looked for after about this long, then less and less.
    """

    answer: float = 60.0
    silence: float = 90.0
    probe: float = 10.0
    recycle: tuple[float, float] = (300.0, 600.0)
    grace: float = 30.0
    healthy: float = 10.0
    retry: tuple[float, float] = (0.8, 30.0)
    absent: float = 15.0


class Absent(Exception):
    """The server does not have this optional kind. ``retry_in``: seconds until it is to be asked for again."""

    def __init__(self, words: str = "", retry_in: float = 0.0) -> None:
        super().__init__(words)
        self.retry_in = retry_in


class Reflector(Generic[R]):
    """Keeps a sink fed with all objects of one kind until stopped.

    ``start`` and ``stop`` belong to the event loop, ``age`` to anybody.
    """

    def __init__(
        self,
        api: Api,
        kind: Kind[R],
        timing: Timing | None = None,
        clock: Clock | None = None,
        discovery: Discovery | None = None,
        *,
        in_force: bool = False,
    ) -> None:
        """``in_force``: objects of this kind may be in force already, so that its absence is not lightly
        believed.

        ``discovery`` is shared by the kinds of one server.
        """
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
        self._ended_in_time = False
        self._incomplete = 0
        self._definition = Definition(kind) if kind.optional else None
        self._discovery = discovery or Discovery(api, self._clock)
        self._belief = Belief(self._clock)
        self._looks = Backoff(self._timing.absent, self._timing.absent * _RARELY)
        self._comes = Backoff(_COMES, self._timing.absent * _RARELY)
        self._present: bool | None = None
        self._in_force = in_force

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
        """Seconds since the server was last heard of: a byte of a list or of a watch, or that it is still
        there."""
        return self._clock.now() - self._alive

    def silent(self) -> Answer | None:
        """The watch that has said nothing for too long, if there is one. Any thread."""
        with self._answer_lock:
            return self._answer if self.age() >= self._timing.silence else None

    def vouch(self, answer: Answer) -> None:
        """The server of this watch is there: it has nothing to say. Any thread."""
        with self._answer_lock:
            if self._answer is answer:
                self._alive = self._clock.now()

    def give_up(self, answer: Answer) -> None:
        """The server of this watch does not answer: begin anew. Any thread."""
        with self._answer_lock:
            if self._answer is answer:
                answer.interrupt()

    # --- in the thread: between conversations --------------------------------------------------------

    def _run(self) -> None:
        delay = 0.0
        try:
            while not self._clock.wait(delay, self._stop):
                self._watching_since = None
                delay = self._next_delay(self._converse())
        except Closed:
            return

    def _converse(self) -> Exception | None:
        """One conversation; returns what ended it, None if that was a clean end of the watch."""
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
            # A defect of ours: the thread must live on, and a list brings back certainty.
            self._log.exception("defect in the informer")
            self._version = ""
            return error
        return None

    def _next_delay(self, failure: Exception | None) -> float:
        if self._stop.is_set():
            raise Closed
        if isinstance(failure, Absent):
            return failure.retry_in
        if self._watched_well():
            self._renew()
            if failure is None:
                return 0.0
        delay = self._backoff.delay(failure.retry_after if isinstance(failure, ApiError) else 0.0)
        reason = str(failure) if failure else "the server ended the watch as soon as it began"
        self._log.warning("watch interrupted", reason=reason, retry_in=round(delay, 1), age=round(self.age(), 1))
        return delay

    def _watched_well(self) -> bool:
        since = self._watching_since
        return since is not None and self._clock.now() - since >= self._timing.healthy

    def _renew(self) -> None:
        """After a watch that went well: what the next server is like is another question."""
        self._backoff.reset()
        self._incomplete = 0
        self._api.renew()

    # --- in the thread: a kind that is not there -----------------------------------------------------

    def _while_absent(self, words: str) -> None:
        """The server answered 404: find out whether to believe it, and wait for a sign that the kind has come.

        Raises:
            Absent: always, with the time to ask for the kind again.
        """
        self._version = ""
        self._alive = self._clock.now()
        word = self._ask_definition()
        if self._present is not False and not self._belief.told(word, doubt=self._in_force):
            delay = self._belief.delay()
            self._log.info("the server says that it has no such kind; asking again", definition=word.name)
            raise Absent(words, delay)
        self._note_absence(word)
        if word is Word.SERVED:
            raise Absent(words, self._comes.delay())
        if word is Word.NOT_SERVED:
            self._comes.reset()
            word = self._await_definition()
        if word is Word.UNKNOWN:
            self._await_discovery()
        raise Absent(words, random.uniform(0, _COMES))  # with all other agents

    def _ask_definition(self) -> Word:
        assert self._definition is not None
        try:
            with self._get(DEFINITIONS, self._definition.query) as answer:
                return self._definition.listed(answer.read())
        except ApiError as error:
            return self._unknown(error)

    def _unknown(self, error: ApiError) -> Word:
        """The definition may not be read, or this server has no definitions either. Any other refusal is one."""
        if error.status in (401, 403, 404):
            return Word.UNKNOWN
        raise error

    def _await_definition(self) -> Word:
        """Watch the definition until it serves the kind, for as long as that takes; UNKNOWN: it cannot be
        watched."""
        assert self._definition is not None
        while True:
            lifetime = random.uniform(*self._timing.recycle)
            self._watching_since = self._clock.now()
            try:
                # Without a version: what there is by now comes first, as ADDED.
                with self._get(DEFINITIONS, self._definition.query | _watch_query(lifetime)) as answer:
                    for lines in self._lines(answer, lifetime):
                        words = [self._definition.event(line) for line in lines]
                        if Word.SERVED in words:
                            return Word.SERVED
            except ApiError as error:
                return self._unknown(error)
            if not self._watched_well():
                raise Unreachable("the server ended the watch of a definition as soon as it began")
            self._renew()

    def _await_discovery(self) -> None:
        """Look at the group's discovery document from time to time, until it has the kind's version."""
        assert self._definition is not None
        while True:
            delay = self._looks.delay()
            if self._clock.wait(delay, self._stop):
                raise Closed
            served = self._discovery.serves(self._definition.group, self._definition.version, delay / 2)
            self._alive = self._clock.now()
            if served:
                return

    def _note_absence(self, word: Word) -> None:
        """A full list of nothing."""
        if self._present is not False:
            self._log.info("not installed on this server", definition=word.name)
            self._put([Mark.LIST_BEGIN, Mark.LIST_END])
        self._present = self._in_force = False

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
        """Ask whether the server knows the version from which the watch is to go on.

        Its store may have been restored from a backup: it then counts from an earlier version, and its history is
        another. To a watch from a version that is yet to come it says nothing at all until it gets there, but a
        list that must not be older is refused at once (ResourceVersionTooLarge).
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
        """List and watch in one request; false where the server does not know this way (KEP-3157).

        It says so by a refusal, or, where its store cannot do it (etcd before 3.4.25 and 3.5.8), by 200 and
        then an ERROR event: then a list is what helps, at once.
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
            if complete or error.status in (_ASK_LATER if begun else _SAYS_NOTHING_OF_REQUEST):
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
        """Take in a watch until it ends."""
        begun = self._clock.now()
        for lines in self._lines(answer, lifetime):
            try:
                self._take([self.kind.change(line) for line in lines])
            except (ApiError, Unreadable):
                # An ERROR event, or a change that we did not understand and so have lost: only a list helps.
                self._version = ""
                raise
        self._ended_in_time = self._clock.now() - begun >= lifetime - 1

    def _lines(self, answer: Answer, lifetime: float) -> Iterator[list[bytes]]:
        """What a watch says, until it ends, or is older than the server was asked to let it become."""
        deadline = self._clock.now() + lifetime + self._timing.grace
        answer.patience(lifetime + self._timing.grace)
        for lines in answer.lines():
            self._alive = self._clock.now()
            yield lines
            if self._alive > deadline:
                return

    def _take(self, changes: list[WatchEvent[R]]) -> None:
        """Hand over, and only then count as seen."""
        found: list[R | Gone | Unusable | Mark] = []
        complete = False
        version = ""
        for change in changes:
            if self._version and isinstance(change.what, Unusable) and not change.what.key[1]:
                # Which object has changed cannot be told: a list says which are still understood.
                raise Unreadable(f"an event of an object without a readable name: {change.what.reason}")
            if (self._version or complete) and _is_older(change.resource_version, version or self._version):
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
        """Send a GET for the kind."""
        with self._get(self.kind.path, query, may_be_absent=self.kind.optional) as answer:
            self._note_presence()
            yield answer

    @contextmanager
    def _get(self, path: str, query: dict[str, str], *, may_be_absent: bool = False) -> Iterator[Answer]:
        """Send a GET; the answer can be interrupted by ``stop`` while it is being read."""
        try:
            answer = self._api.request("GET", path, query, read_timeout=self._timing.answer)
        except ApiError as error:
            if error.status == 404 and may_be_absent:
                raise Absent(str(error)) from error
            raise
        with answer:
            self._alive = self._clock.now()
            with self._answer_lock:
                self._answer = answer
            try:
                if self._stop.is_set():
                    raise Closed
                yield answer
            finally:
                with self._answer_lock:
                    self._answer = None


def _is_older(version: str, than: str) -> bool:
    """Whether a watch has gone back. Versions of one kind can be compared where they are decimal (KEP-5504)."""
    return version.isdecimal() and than.isdecimal() and int(version) < int(than)


def _watch_query(lifetime: float) -> dict[str, str]:
    return {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(max(1, round(lifetime)))}
