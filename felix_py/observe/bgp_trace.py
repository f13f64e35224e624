"""``/bgp/trace`` of the health server's private socket: what happens in BGP, as JSON lines without end."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
from aiohttp import web

from bgp.fields import named_address
from bgp.prefixes import PrefixSet, canonical, covers
from bgp.trace import Traced
from felix_py.observe.deny_events import timestamp
from felix_py.observe.deny_http import KEEPALIVE

BACKLOG = 2000
"""Events that wait for a reader at most: some 300 KB."""

MOST_FOLLOWERS = 8

Listener = Callable[[Traced], None]
Listen = Callable[[Listener | None], None]
"""Sets who is told of each event, or nobody: what nobody hears costs nothing."""


class TooManyFollowers(Exception):
    """The limit of followers is reached."""


class Wanted:
    """What a follower asks for: everything, or what is about a peer, an address or a CIDR."""

    def __init__(self, text: str = "") -> None:
        """Raises ValueError for a text that is neither an address nor a CIDR."""
        self._prefix = canonical(text) if text else ""
        self._inside = PrefixSet([self._prefix] if text else [])
        self._address = "" if "/" in text else self._prefix.partition("/")[0]

    def matches(self, event: Traced) -> bool:
        """Of an address: sessions and prefixes that cover it. Of a CIDR: that one, and those inside it."""
        if not self._prefix:
            return True
        if self._address:
            return named_address(event.peer) == self._address or bool(
                event.prefix and covers(event.prefix, self._address)
            )
        return bool(event.prefix) and self._inside.covers(event.prefix)


class Follower:
    """Events for one reader; what finds no room is lost and counted, in its place among the others."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._waiting: deque[dict[str, Any]] = deque()
        self._lost = 0
        self._more = asyncio.Event()

    def note(self, event: Traced) -> None:
        """Keep an event, if it is asked for."""
        if not self._wanted.matches(event):
            return
        if len(self._waiting) >= BACKLOG:
            self._lost += 1
            return
        self._tell_lost()
        self._waiting.append({"time": timestamp(time.time()), **event._asdict()})
        self._more.set()

    async def take(self) -> list[dict[str, Any]]:
        """Wait for events; returns all that are there."""
        await self._more.wait()
        self._more.clear()
        self._tell_lost()
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def _tell_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            self._waiting.append({"time": timestamp(time.time()), "kind": "lost", "count": lost})


class BgpTrace:
    """The route for :class:`felix_py.observe.health.HealthServer`, and its readers."""

    def __init__(self, listen: Listen) -> None:
        self._listen = listen
        self._followers: set[Follower] = set()

    def route(self) -> web.RouteDef:
        """The route to add to an application."""
        return web.get("/bgp/trace", self._get)

    @contextmanager
    def follow(self, wanted: Wanted) -> Iterator[Follower]:
        """A reader's events from now on. Raises TooManyFollowers."""
        if len(self._followers) >= MOST_FOLLOWERS:
            raise TooManyFollowers(f"{MOST_FOLLOWERS} already follow BGP on this node")
        follower = Follower(wanted)
        self._followers.add(follower)
        self._listen(self._note)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            if not self._followers:
                self._listen(None)

    def _note(self, event: Traced) -> None:
        for follower in self._followers:
            follower.note(event)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        """``?about=PEER``, or an address, or a CIDR."""
        asked = request.query.get("about", "")
        try:
            wanted = Wanted(asked)
        except ValueError:
            return web.Response(status=400, text=f"{asked[:80]!r} is neither a CIDR nor an address\n")
        try:
            with self.follow(wanted) as follower:
                response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
                await response.prepare(request)
                with suppress(ConnectionError):  # the client may close at any time
                    while True:
                        await response.write(await _lines(follower))
                return response
        except TooManyFollowers as error:
            return web.Response(status=503, text=f"{error}\n")


async def _lines(follower: Follower) -> bytes:
    """What there is to say; an empty line after a long silence, which shows both ends a broken stream."""
    try:
        async with asyncio.timeout(KEEPALIVE):
            events = await follower.take()
    except TimeoutError:
        return b"\n"
    return b"".join(msgspec.json.encode(event) + b"\n" for event in events)
