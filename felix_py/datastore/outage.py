"""How the informers of one API server wait while it does not answer, and go on together once it does.

Each alone would try in its own time: as many tries as there are kinds, and after the server's return the last
kind would follow up to 45 s later, while a new pod needs them all. So they take turns, and the first that gets an
answer ends the waiting of the others.

A turn may come as often as every ten seconds: one try of an agent in that time is a third of what eight kinds,
each in half a minute, would cost the server. Each agent draws it for itself, 5 to 15 s, so thousands of agents
come back spread over that time. What they ask for then is the server's to ration: 429 and Retry-After are kept.
"""

from __future__ import annotations

import threading

from msgspec import Struct

from felix_py.backoff import Backoff
from felix_py.datastore.client import ApiError, Unreachable
from felix_py.datastore.clock import Clock

GATEWAY = frozenset({502, 503, 504})
"""Statuses of a proxy in between that does not reach the server."""

_NOT_NOW = frozenset({401, 403, 500})
"""Refusals of any request by a server that has no store or authorizer yet, or does not know our credentials."""

SAYS_NOTHING_OF_REQUEST = _NOT_NOW | GATEWAY | {429}
"""Refusals that concern credentials or the server's health: the same request may succeed later."""


class Rest(Struct, frozen=True):
    """What is waited for before the next try: ``delay`` seconds, or a turn if None.

    ``wakeable``: another kind's answer ends it.
    """

    delay: float | None
    wakeable: bool = False


class Outage:
    """Shared by the informers of one server; any thread. It is over as soon as one of them has been answered."""

    def __init__(self, delays: tuple[float, float], clock: Clock) -> None:
        """``delays``: first and longest mean interval between two turns, in seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._backoff = Backoff(*delays)
        self._due: float | None = None
        self._waiting: set[threading.Event] = set()

    def answered(self) -> None:
        """Note an answer to anybody: who waits goes on."""
        with self._lock:
            self._due = None
            for wake in self._waiting:
                wake.set()

    def renew(self) -> None:
        """Have turns begin with the first interval again.

        An answer alone does not: a server that crashes at each start answers a little in between.
        """
        with self._lock:
            self._backoff.reset()

    def wait(self, rest: Rest, wake: threading.Event) -> bool:
        """Wait until the rest is over, or ``wake`` is set; returns whether it is."""
        if rest.wakeable:
            with self._lock:
                self._waiting.add(wake)
        try:
            return self._wait_turn(wake) if rest.delay is None else self._clock.wait(rest.delay, wake)
        finally:
            with self._lock:
                self._waiting.discard(wake)

    def _wait_turn(self, wake: threading.Event) -> bool:
        with self._lock:
            if self._due is None:
                self._due = self._clock.now() + self._backoff.delay()
        while left := self._until_turn():
            if self._clock.wait(left, wake):
                return True
        return False

    def _until_turn(self) -> float:
        """Seconds until the next turn; 0 if it is the caller's, or the outage is over."""
        with self._lock:
            if self._due is None:
                return 0.0
            now = self._clock.now()
            if now < self._due:
                return self._due - now
            self._due = now + self._backoff.delay()
            return 0.0


class Retry:
    """When one informer tries again. All but ``close`` belongs to its thread."""

    def __init__(self, delays: tuple[float, float], outage: Outage) -> None:
        """``delays``: first and longest mean delay after failures that are this kind's alone, in seconds."""
        self._backoff = Backoff(*delays)
        self._outage = outage
        self._refusal: ApiError | Unreachable | None = None
        self._wake = threading.Event()
        self._woken = False
        self._closed = False

    def answered(self) -> None:
        """Note that the last request was accepted, whatever becomes of its answer."""
        self._refusal = None
        self._outage.answered()

    def refused(self, error: ApiError | Unreachable) -> None:
        """Note that the last request failed."""
        self._refusal = error
        if isinstance(error, ApiError) and error.status not in SAYS_NOTHING_OF_REQUEST:
            self._outage.answered()

    def renew(self) -> None:
        """Start from the first delays again, after a watch that went well."""
        self._backoff.reset()
        self._outage.renew()

    def after(self, failure: Exception | None) -> Rest:
        """What to wait for after a conversation that failed, or was ended by the server as soon as it began."""
        asked = failure.retry_after if isinstance(failure, ApiError) else 0.0
        status = self._refusal.status if isinstance(self._refusal, ApiError) else 0
        # Once in a row: two kinds that are each answered a little and then fail would wake each other for ever.
        wakeable = not self._woken and not asked
        if isinstance(self._refusal, Unreachable) or (status in GATEWAY and not asked):
            return Rest(None, wakeable)
        return Rest(self._backoff.delay(asked), wakeable and status in _NOT_NOW)

    def wait(self, rest: Rest) -> bool:
        """Wait for it; returns whether this is closed."""
        self._woken = self._outage.wait(rest, self._wake)
        self._wake.clear()
        return self._closed

    def close(self) -> None:
        """Have ``wait`` return at once, now and later. Any thread."""
        self._closed = True
        self._wake.set()
