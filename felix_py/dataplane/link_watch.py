"""Watches the host's links: the usable next hops depend on them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection
from contextlib import closing

from felix_py import log
from felix_py.dataplane.kernel_events import foreign_filter
from felix_py.dataplane.monitor import listen, receive
from felix_py.dataplane.reach import GROUPS, LinkChanges, Links, read_links
from felix_py.netlink.wire import NETLINK_ROUTE
from felix_py.pace import Pace, Paced
from policy.model import Family

_GAP = 0.1
"""Least seconds between two looks; after a quiet time the first look is immediate."""

_REFRESH = 30.0
"""Seconds after which the links are read without any event."""


class LinkWatch:
    """Belongs to the network namespace of the thread that runs it."""

    def __init__(self, families: Collection[Family], *on_links: Callable[[Links], None]) -> None:
        """``on_links`` are called on the event loop, first with the present links and then with each change."""
        self._families = tuple(families)
        self._on_links = on_links
        self._changes = LinkChanges()
        self._last: Links | None = None
        self._pace = Paced(Pace(0.0, 0.0, _GAP))
        self._troubled = False
        self._log = log.get("links")

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._pace.run(self._look))
            while True:
                self._pace.ask()
                await asyncio.sleep(_REFRESH)

    async def _listen(self) -> None:
        try:
            source = listen(NETLINK_ROUTE, GROUPS, foreign_filter())
        except OSError as error:
            self._log.warning("changes of links are found late", reason=str(error), seconds=_REFRESH)
            return
        loop = asyncio.get_running_loop()
        with closing(source):
            loop.add_reader(source, self._hear, source)
            try:
                self._pace.ask()
                await loop.create_future()
            finally:
                loop.remove_reader(source)

    def _hear(self, source: socket.socket) -> None:
        try:
            datagrams, concerned = receive(source)
        except OSError as error:
            asyncio.get_running_loop().remove_reader(source)
            self._log.warning("changes of links are found late", reason=str(error), seconds=_REFRESH)
            datagrams, concerned = [], True
        for data in datagrams:
            concerned |= self._changes.concern_us(data)
        if concerned:
            self._pace.ask()

    async def _look(self) -> float:
        started = time.monotonic()
        try:
            links = await asyncio.to_thread(read_links, self._families)
        except OSError as error:
            if not self._troubled:
                self._log.warning("cannot read links and routes; trying again", reason=str(error))
            self._troubled = True
            asyncio.get_running_loop().call_later(1.0, self._pace.ask)
        else:
            self._troubled = False
            self._changes.begin(links)
            if links != self._last:
                self._last = links
                for listener in self._on_links:
                    listener(links)
        return time.monotonic() - started
