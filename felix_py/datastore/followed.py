"""Kinds that are not followed by every agent all the time: each from when it is first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from felix_py import log
from felix_py.datastore.absence import Discovery
from felix_py.datastore.client import Api
from felix_py.datastore.decode import Kind
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.outage import Outage
from felix_py.datastore.store import Problem, Table
from policy.change import Change

R = TypeVar("R")

Handler = Callable[[Sequence[Change[Any]]], None]
"""Receives changes in order, on the loop."""


class Followed:
    """Tables of some kinds, from :meth:`start` to :meth:`stop`; once. On the event loop only."""

    def __init__(
        self,
        api: Api,
        timing: Timing,
        watched: list[Reflector[Any]],
        kinds: Sequence[Kind[Any]],
        *,
        discovery: Discovery | None = None,
        outage: Outage | None = None,
        in_force: bool = False,
        component: str = "followed",
    ) -> None:
        """``watched``: the agent's reflectors, whose silent watches are looked after; these join them.

        ``discovery`` and ``outage`` are shared by all that watch this server. ``in_force``: the objects may be in
        use, so that the kinds are not there is believed late. ``component``: in log lines.
        """
        self._log = log.get(component)
        self._watched = watched
        self._handler: Handler = lambda _changes: None
        self._on_listed: Callable[[], None] = lambda: None
        self.changed = asyncio.Event()
        """Set whenever an object may have changed; who waits for it clears it."""
        self._sources: dict[str, tuple[Table[Any], Reflector[Any]]] = {}
        for kind in kinds:
            table = Table(kind, self._publish, self._say, lambda _kind: self._on_listed())
            table.on_change(self.changed.set)
            reflector = Reflector(api, kind, timing, discovery=discovery, outage=outage, in_force=in_force)
            self._sources[kind.name] = table, reflector
        self._started: list[str] = []

    def subscribe(self, handler: Handler, on_listed: Callable[[], None] = lambda: None) -> None:
        """Give ``handler`` every change from now on; call ``on_listed`` when a kind's full list is in. Call it
        once, before :meth:`start`."""
        self._handler, self._on_listed = handler, on_listed

    def start(self, *kinds: str) -> list[str]:
        """List and watch kinds, given by name, or all of them; returns those that were not watched before."""
        new = [kind for kind in kinds or self._sources if kind not in self._started]
        for kind in new:
            table, reflector = self._sources[kind]
            self._started.append(kind)
            self._watched.append(reflector)
            reflector.start(table.apply)
        return new

    async def stop(self) -> None:
        """End the watches; the tables keep what they have."""
        reflectors = [self._sources[kind][1] for kind in self._started]
        for reflector in reflectors:
            self._watched.remove(reflector)
        await asyncio.gather(*(reflector.stop() for reflector in reflectors))

    def table(self, kind: Kind[R]) -> Table[R]:
        """The objects of one of the kinds."""
        return self._sources[kind.name][0]

    def listed(self) -> bool:
        """Whether the full lists of all kinds that are watched are in."""
        return all(self._sources[kind][0].listed.is_set() for kind in self._started)

    async def until_listed(self) -> None:
        """Return once they are."""
        for kind in self._started:
            await self._sources[kind][0].listed.wait()

    def refused(self) -> bool:
        """Whether the API server does not let us see one of the kinds that are watched."""
        return bool(self.refused_kinds())

    def refused_kinds(self) -> list[str]:
        """The kinds that are watched and that the API server does not let us see."""
        return [kind for kind in self._started if self._sources[kind][1].refused]

    def ages(self) -> dict[str, float]:
        """Kind -> seconds since its watch last heard from the API server; only of kinds that are watched."""
        return {kind: self._sources[kind][1].age() for kind in self._started}

    def _publish(self, changes: Sequence[Change[Any]]) -> None:
        try:
            self._handler(changes)
        except MemoryError:
            raise
        except Exception:
            # A defect of ours with one object must not end the watch.
            self._log.exception("cannot take over objects", changes=len(changes))

    def _say(self, problem: Problem) -> None:
        where = "/".join(part for part in problem.key if part)
        self._log.warning("cannot use an object", kind=problem.kind, object=where, reason=problem.reason)
