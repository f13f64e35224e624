"""Kinds that are followed for a while: by who leads, while it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from felix_py import log
from felix_py.datastore.absence import Discovery
from felix_py.datastore.client import Api
from felix_py.datastore.decode import Kind
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.outage import Outage
from felix_py.datastore.store import Problem, Table

R = TypeVar("R")


class Followed:
    """Tables of some kinds, from :meth:`start` to :meth:`stop`; once. On the event loop only."""

    def __init__(
        self,
        api: Api,
        timing: Timing,
        discovery: Discovery,
        outage: Outage,
        watched: list[Reflector[Any]],
        kinds: Sequence[Kind[Any]],
    ) -> None:
        """``discovery`` and ``outage`` are shared by all that watch this server. ``watched``: reflectors whose
        silent watches are looked after; these join them."""
        self._log = log.get("followed")
        self._watched = watched
        self.changed = asyncio.Event()
        """Set whenever an object may have changed; who waits for it clears it."""
        self._sources: dict[str, tuple[Table[Any], Reflector[Any]]] = {}
        for kind in kinds:
            table = Table(kind, lambda _changes: None, self._say, lambda _kind: None)
            table.on_change(self.changed.set)
            reflector = Reflector(api, kind, timing, discovery=discovery, outage=outage)
            self._sources[kind.name] = table, reflector

    def start(self) -> None:
        """List and watch."""
        for table, reflector in self._sources.values():
            self._watched.append(reflector)
            reflector.start(table.apply)

    async def stop(self) -> None:
        """End the watches; the tables keep what they have."""
        for _, reflector in self._sources.values():
            self._watched.remove(reflector)
        await asyncio.gather(*(reflector.stop() for _, reflector in self._sources.values()))

    def table(self, kind: Kind[R]) -> Table[R]:
        """The objects of one of the kinds."""
        return self._sources[kind.name][0]

    async def listed(self) -> None:
        """Return once all kinds' full lists are in."""
        for table, _ in self._sources.values():
            await table.listed.wait()

    def _say(self, problem: Problem) -> None:
        where = "/".join(part for part in problem.key if part)
        self._log.warning("cannot use an object", kind=problem.kind, object=where, reason=problem.reason)
