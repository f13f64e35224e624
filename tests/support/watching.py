"""A reflector with its table on an event loop, and a clock that tests own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from felix_py.datastore.access import Identity, Plain
from felix_py.datastore.client import Api
from felix_py.datastore.clock import SystemClock
from felix_py.datastore.decode import Kind
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.kinds import PODS
from felix_py.datastore.probe import Probe
from felix_py.datastore.store import Problem, Store, Table
from policy.change import Change
from tests.support.fakeapi import PATIENCE, FakeApi

QUICK = Timing(answer=PATIENCE, silence=PATIENCE)
"""Nothing on loopback is ever silent by accident."""


class ScriptedClock:
    """Waits pass at once, are remembered, and are all that makes the time go on (but for ``advance``)."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._time = 1000.0
        self._changed = threading.Condition()

    def now(self) -> float:
        return self._time

    def advance(self, seconds: float) -> None:
        self._time += seconds

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        with self._changed:
            self._time += seconds
            self.waits.append(seconds)
            self._changed.notify_all()
        # A moment, so that a reflector under a lasting fault does not take the whole processor.
        return stop.wait(0.0005)

    async def until_waits(self, count: int) -> list[float]:
        """The waits, once there are so many; without the first one, the jitter of the start."""

        def block() -> list[float]:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.waits) > count, PATIENCE), self.waits
                return self.waits[1 : count + 1]

        return await asyncio.to_thread(block)


class Watching:
    """One kind's reflector and table, with everything it has published."""

    def __init__(
        self,
        reflector: Reflector[Any],
        table: Table[Any],
        store: Store,
        clock: ScriptedClock,
        client: Api,
        timing: Timing,
    ) -> None:
        self.timing = timing
        self.reflector = reflector
        self.table = table
        self.store = store
        self.clock = clock
        self.client = client
        self.events: list[Change[Any]] = []
        self.problems: list[Problem] = []
        self._moved = asyncio.Event()
        store.subscribe(self._note)

    def sink(self, items: Sequence[Any]) -> None:
        """In front of the table, so that also what changes nothing is noticed."""
        self.table.apply(items)
        self._moved.set()

    def _note(self, events: Sequence[Change[Any]]) -> None:
        self.events += events

    def names(self) -> set[str]:
        """Names of the objects in the table."""
        return {name for _, name in self.table.records}

    def upserted(self) -> list[str]:
        """Names in the order in which they were published as new or changed."""
        return [e.after.name for e in self.events if e.after is not None]

    def deleted(self) -> list[str]:
        """Names in the order in which they were published as gone."""
        return [e.newest.name for e in self.events if e.after is None]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something about the table or its events is true."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._moved.clear()
                await self._moved.wait()

    async def until_names(self, *names: str) -> None:
        """Wait until exactly these objects are in the table."""
        try:
            await self.until(lambda: self.names() == set(names))
        except TimeoutError:
            raise AssertionError(f"expected {sorted(names)}, the table has {sorted(self.names())}") from None

    async def until_listed(self) -> None:
        """Wait until a full list is in."""
        await self.until(lambda: self.reflector.kind.name not in self.store.not_listed)


def configuration(api: FakeApi) -> Plain:
    """The way to a fake server."""
    return Plain(Identity(api.url, token=api.token))


@asynccontextmanager
async def probing(watch: Watching) -> AsyncIterator[None]:
    """Look after a silent watch, by the machine's clock. Its silence is counted by the test's: it goes on by half
    of the allowed one with every look.
    """

    class Looks(SystemClock):
        def wait(self, seconds: float, stop: threading.Event) -> bool:
            watch.clock.advance(watch.timing.silence / 2)
            return super().wait(seconds, stop)

    probe = Probe(watch.client, [watch.reflector], watch.timing, Looks())
    probe.start()
    try:
        yield
    finally:
        await asyncio.to_thread(probe.stop)


@asynccontextmanager
async def watching(
    api: FakeApi,
    timing: Timing = QUICK,
    clock: ScriptedClock | None = None,
    client: Api | None = None,
    kind: Kind[Any] = PODS,
    in_force: bool = False,
) -> AsyncIterator[Watching]:
    """Watch the pods of a fake server, or one of the cluster-scoped kinds of policies."""
    client = client or Api(lambda: configuration(api))
    problems: list[Problem] = []
    clock = clock or ScriptedClock()
    reflector = Reflector(client, kind, timing, clock, in_force=in_force)
    store = Store(problems.append)
    table: Table[Any] = store.pods if kind is PODS else store.cluster_policies(kind)
    watch = Watching(reflector, table, store, clock, client, timing)
    watch.problems = problems
    reflector.start(watch.sink)
    try:
        yield watch
    finally:
        await reflector.stop()
        client.close()
        assert not any(t.name == f"informer-{kind.name}" for t in threading.enumerate()), (
            "the reflector did not stop"
        )
