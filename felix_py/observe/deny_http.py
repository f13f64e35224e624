"""``/denies`` of the health server: the newest denied packets, and a stream of those to come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from aiohttp import web

from felix_py.observe.denies import Denies, TooManyFollowers
from felix_py.observe.deny_events import DenyEvent

KEEPALIVE = 15.0
"""Seconds without an event after which a follower gets an empty line: either notices that the other is gone."""

LAST_ID = "Felix-Last-Id"
"""Header of a stream: the id of the newest event so far. Who loses the stream asks for what came since."""


class DenyRoutes:
    """Routes for :class:`felix_py.observe.health.HealthServer`."""

    def __init__(self, node: str, denies: Denies | None, unavailable: Callable[[], str | None]) -> None:
        """``denies`` None: switched off. ``unavailable``: why nothing is read at present."""
        self._node = node
        self._denies = denies
        self._unavailable = unavailable

    def routes(self) -> list[web.RouteDef]:
        """What to add to an application."""
        return [web.get("/denies", self._get)]

    def state(self) -> dict[str, Any]:
        """Is the log on, and does it work?"""
        reason = self._unavailable()
        if self._denies is None:
            return {"state": "off", "reason": reason}
        return {
            "state": "on" if reason is None else "unavailable",
            "reason": reason,
            "suppressed": self._denies.suppressed,
        }

    async def _get(self, request: web.Request) -> web.StreamResponse:
        """``?since=ID`` only later ones; ``?namespace=NS`` or ``?pod=NS/POD`` only those with such an end;

        ``?limit=N`` of these the newest N; ``?follow=1`` JSON lines without end.
        """
        try:
            wanted = _Wanted.of(request.query)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        if self._denies and wanted.since > self._denies.last_id:
            # An id of the agent's last life, which had a clock that was ahead of ours: all ours came since.
            wanted = replace(wanted, since=0)
        if wanted.follow:
            return await self._follow(request, wanted)
        found = wanted.choose(self._denies.events()) if self._denies else []
        body = {"node": self._node, **self.state(), "events": found}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _follow(self, request: web.Request, wanted: _Wanted) -> web.StreamResponse:
        if self._denies is None:
            return web.Response(status=503, text=f"{self._unavailable()}\n")
        try:
            with self._denies.follow() as queue:
                before = wanted.choose(self._denies.events(closed=True))
                headers = {"Content-Type": "application/x-ndjson", LAST_ID: str(self._denies.last_id)}
                response = web.StreamResponse(headers=headers)
                await response.prepare(request)
                # Whoever follows may go at any time.
                with suppress(ConnectionError):
                    for event in before:
                        await response.write(msgspec.json.encode(event) + b"\n")
                    await _stream(response, queue, wanted)
                return response
        except TooManyFollowers as error:
            return web.Response(status=503, text=f"{error}\n")


async def _stream(response: web.StreamResponse, queue: asyncio.Queue[DenyEvent], wanted: _Wanted) -> None:
    while True:
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEPALIVE):
                event = await queue.get()
                line = msgspec.json.encode(event) if wanted.matches(event) else b""
        await response.write(line + b"\n")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a request asks for."""

    since: int = 0
    limit: int | None = None
    namespace: str = ""
    pod: str = ""
    follow: bool = False

    @classmethod
    def of(cls, query: Mapping[str, str]) -> _Wanted:
        """
        Raises:
            ValueError: the message says which value is none.
        """
        if unknown := query.keys() - {"since", "limit", "namespace", "pod", "follow"}:
            raise ValueError(f"{min(unknown)[:40]!r}: there is since, limit, namespace, pod and follow")
        numbers = {name: _number(name, query[name]) for name in ("since", "limit") if name in query}
        follow = query.get("follow", "0") in ("1", "true", "")
        return cls(
            numbers.get("since", 0),
            numbers.get("limit"),
            query.get("namespace", ""),
            query.get("pod", ""),
            follow,
        )

    def matches(self, event: DenyEvent) -> bool:
        """Whether an event is one of those asked for."""
        pods = {event.source.pod, event.destination.pod}
        if self.pod and self.pod not in pods:
            return False
        if self.namespace and not any(pod.startswith(f"{self.namespace}/") for pod in pods):
            return False
        return event.id > self.since

    def choose(self, events: Iterable[DenyEvent]) -> list[DenyEvent]:
        """The newest of the events asked for, oldest first."""
        found = [event for event in events if self.matches(event)]
        return found if self.limit is None else found[len(found) - min(self.limit, len(found)) :]


def _number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError(f"{name}={text[:40]!r}: must be a number")
    return int(text)
