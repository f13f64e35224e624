"""This agent's part in the election of the one that does what one has to do for the whole cluster."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

from felix_py import log
from felix_py.agent.election import Election, Timing
from felix_py.datastore.client import ApiError, Unreachable
from felix_py.datastore.leases import micro_time
from felix_py.records import LeaderLease

_MARGIN = 2.0
"""Seconds of the time left that no write begins in."""

_LONGEST_WRITE = 5.0
_RELEASE = 2.0

T = TypeVar("T", LeaderLease, LeaderLease | None)


class NotLeading(Exception):
    """Another agent may lead by now: nothing may be written."""


class Store(Protocol):
    """See :class:`felix_py.datastore.leases.Leases`."""

    def read(self) -> LeaderLease | None: ...

    def write(self, lease: LeaderLease) -> LeaderLease: ...


def boot_time() -> float:
    """Seconds, also those in which the machine was suspended: in these another may have come to lead."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def identity(node: str) -> str:
    """Names the node, and this process alone (client-go's convention)."""
    return f"{node}_{uuid.uuid4()}"


def rank(node: str, nodes: Iterable[str]) -> int:
    """How many nodes come before this one, in an order that has nothing to do with where they stand."""
    own = (zlib.crc32(node.encode()), node)
    return sum((zlib.crc32(name.encode()), name) < own for name in nodes)


class Elector:
    """Takes part in the election while :meth:`run` runs. On the event loop, but for :meth:`writing`."""

    def __init__(
        self,
        store: Store,
        identity: str,
        rank: Callable[[], int],
        *,
        timing: Timing | None = None,
        clock: Callable[[], float] = boot_time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """``rank``: of this node, see :meth:`felix_py.agent.election.Election.pause`."""
        self._store = store
        self._rank = rank
        self._clock = clock
        self._chance = chance
        self._election = Election(identity, timing)
        self._log = log.get("election")
        self._lock = threading.Lock()
        self._writes = 0
        self._open = False
        self._timer: asyncio.TimerHandle | None = None
        self._failing = ""
        self._under_way: asyncio.Future[Any] | None = None
        self.leading = asyncio.Event()
        """Set while this agent leads."""
        self.lost = asyncio.Event()
        """Set while it does not."""
        self.lost.set()

    async def run(self) -> None:
        """Take part until cancelled; then let another lead at once."""
        try:
            while True:
                await self._turn()
                ours = self._election.left(self._clock())
                await asyncio.sleep(
                    self._election.pause(self._clock(), 0 if ours else self._rank(), self._chance)
                )
        finally:
            await self._release()

    async def _turn(self) -> None:
        """Look, and write if it is our turn."""
        try:
            self._election.found(await self._ask(self._store.read), self._clock())
            wanted = self._election.attempt(self._clock(), micro_time())
            if wanted is not None:
                asked = self._clock()
                written = await self._ask(self._store.write, wanted)
                self._election.written(written, asked, self._clock())
            self._failing = ""
        except ApiError as error:
            if error.status not in (404, 409):  # else another was faster
                self._say(str(error.status), error)
        except Unreachable as error:
            self._say("unreachable", error)
        self._note()

    def _say(self, sort: str, error: Exception) -> None:
        """Log the first of failures of one sort."""
        if sort != self._failing:
            self._log.warning("cannot take part in the election of who leads", reason=str(error))
        self._failing = sort

    def _note(self) -> None:
        """Take over whether this agent leads, and look again when it no longer does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = self._election.left(self._clock())
        self._open = left > 0
        if left:
            self._timer = asyncio.get_running_loop().call_later(left, self._note)
            if not self.leading.is_set():
                self._log.info(
                    "leads: does what one agent does for the cluster", identity=self._election.identity
                )
            self.leading.set()
            self.lost.clear()
        elif self.leading.is_set():
            self._log.info("leads no more", holder=self._election.holder)
            self.leading.clear()
            self.lost.set()

    @contextmanager
    def writing(self) -> Iterator[float]:
        """Allow one write, for any thread; yields the seconds that it may take.

        Raises:
            NotLeading: this agent does not lead, or not for long enough.
        """
        with self._lock:
            left = self._election.left(self._clock()) - _MARGIN
            if left <= 0 or not self._open:
                raise NotLeading
            self._writes += 1
        try:
            yield min(left, _LONGEST_WRITE)
        finally:
            with self._lock:
                self._writes -= 1

    async def _ask(self, call: Callable[..., T], *arguments: LeaderLease) -> T:
        """Run a request in a thread; whoever cancels this finds it in :attr:`_under_way`."""
        work = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
        self._under_way = work
        try:
            found: T = await asyncio.shield(work)
        except (ApiError, Unreachable):
            self._under_way = None
            raise
        self._under_way = None
        return found

    async def _release(self) -> None:
        """One try. Not while a write is under way, which another leader must not meet: the Lease expires then."""
        with self._lock:
            self._open = False
            quiet = not self._writes
        ours = self._election.release(micro_time()) is not None
        self._note()
        with suppress(ApiError, Unreachable, TimeoutError):
            async with asyncio.timeout(_RELEASE):
                if self._under_way is not None:
                    await asyncio.wait((self._under_way,))
                    ours = self._under_way.exception() is None or ours  # it may be by now
                if quiet and ours:
                    self._election.found(await asyncio.to_thread(self._store.read), self._clock())
                    if (free := self._election.release(micro_time())) is not None:
                        await asyncio.to_thread(self._store.write, free)
        self._election = Election(self._election.identity, self._election.timing)
