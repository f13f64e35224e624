"""``/denies`` of the health server: the newest denied packets, and a stream of later ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from aiohttp import web

from felix_py.observe.denies import Denies, Follower, TooManyFollowers
from felix_py.observe.deny_events import DenyEvent

KEEPALIVE = 15.0
"""Seconds without an event after which a follower gets an empty line, which shows both ends a broken stream."""

LAST_ID = "Felix-Last-Id"
"""Header of a stream: the id of the newest event so far, from which a client resumes a broken stream."""


class DenyRoutes:
    """Routes for :class:`felix_py.observe.health.HealthServer`."""

    def __init__(self, node: str, denies: Denies | None, unavailable: Callable[[], str | None]) -> None:
        """``denies`` None: switched off. ``unavailable`` returns why packets are not read at present, or None."""
        self._node = node
        self._denies = denies
        self._unavailable = unavailable

    def routes(self) -> list[web.RouteDef]:
        """Routes to add to an application."""
        return [web.get("/denies", self._get)]

    def state(self) -> dict[str, Any]:
        """The log's state for ``/status``: on, off or unavailable, and why."""
        reason = self._unavailable()
        if self._denies is None:
            return {"state": "off", "reason": reason}
        state = "on" if reason is None else "unavailable"
        suppressed = self._denies.suppressed
        return {"state": state, "reason": reason, "suppressed": suppressed, "lastMinute": self._denies.recent()}

    async def _get(self, request: web.Request) -> web.StreamResponse:
        """``?since=ID``: only later events; ``?within=SECONDS``: of those present, only what is no older;
        ``?namespace=NS`` or ``?pod=NS/POD``: only those with such an end; ``?limit=N``: of these the newest N;
        ``?follow=1``: JSON lines without end.
        """
        try:
            wanted = _Wanted.of(request.query)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        if self._denies and wanted.since > self._denies.last_id:
            # An id from before a restart, when the clock was ahead: all events are later.
            wanted = replace(wanted, since=0)
        if wanted.follow:
            return await self._follow(request, wanted)
        found = wanted.choose(self._denies.events(within=wanted.within)) if self._denies else []
        complete = self._denies.completeness() if self._denies else {}
        body = {"node": self._node, **self.state(), **complete, "events": found}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _follow(self, request: web.Request, wanted: _Wanted) -> web.StreamResponse:
        if self._denies is None:
            return web.Response(status=503, text=f"{self._unavailable()}\n")
        try:
            with self._denies.follow() as queue:
                before = wanted.choose(self._denies.events(closed=True, within=wanted.within))
                headers = {"Content-Type": "application/x-ndjson", LAST_ID: str(self._denies.last_id)}
                response = web.StreamResponse(headers=headers)
                await response.prepare(request)
                with suppress(ConnectionError):  # the client may close at any time
                    for event in before:
                        await response.write(msgspec.json.encode(event) + b"\n")
                    await _stream(response, self._denies, queue, wanted)
                return response
        except TooManyFollowers as error:
            return web.Response(status=503, text=f"{error}\n")


async def _stream(response: web.StreamResponse, denies: Denies, queue: Follower, wanted: _Wanted) -> None:
    """Events as lines; ``{"missed": N}`` for packets and events that this follower does not see."""
    told = denies.missed
    while True:
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEPALIVE):
                event = await queue.get()
                line = msgspec.json.encode(event) if wanted.matches(event) else b""
        await response.write(line + b"\n")
        if (missed := denies.missed + queue.dropped) > told:
            await response.write(msgspec.json.encode({"missed": missed - told}) + b"\n")
            told = missed


@dataclass(frozen=True, slots=True)
class _Wanted:
    since: int = 0
    limit: int | None = None
    namespace: str = ""
    pod: str = ""
    follow: bool = False
    within: int | None = None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> _Wanted:
        """Raises ValueError for an unknown or invalid parameter."""
        if unknown := query.keys() - {"since", "within", "limit", "namespace", "pod", "follow"}:
            raise ValueError(f"{min(unknown)[:40]!r}: there is since, within, limit, namespace, pod and follow")
        numbers = {name: _number(name, query[name]) for name in ("since", "within", "limit") if name in query}
        follow = query.get("follow", "0") in ("1", "true", "")
        namespace, pod = query.get("namespace", ""), query.get("pod", "")
        return cls(numbers.get("since", 0), numbers.get("limit"), namespace, pod, follow, numbers.get("within"))

    def matches(self, event: DenyEvent) -> bool:
        pods = {event.source.pod, event.destination.pod}
        if self.pod and self.pod not in pods:
            return False
        if self.namespace and not any(pod.startswith(f"{self.namespace}/") for pod in pods):
            return False
        return event.id > self.since

    def choose(self, events: Iterable[DenyEvent]) -> list[DenyEvent]:
        """The newest matching events, oldest first."""
        found = [event for event in events if self.matches(event)]
        return found if self.limit is None else found[len(found) - min(self.limit, len(found)) :]


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"{name}={text[:40]!r}: must be a number")
    return int(text)
