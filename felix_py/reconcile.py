"""One coalescing runner: however many changes came in, one apply brings the kernel to the newest state.

Changes are *noted* by whoever has them (cheap, on the event loop) and *collected* into the planner only when an
apply is about to start. While an apply runs in its thread, more changes wait and share the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from felix_py import log
from felix_py.dataplane.interface import Dataplane
from felix_py.metrics import Metrics
from felix_py.plan.planner import Planner
from felix_py.records import Failure, Report, Update

T = TypeVar("T")

_REST = 0.05
"""Seconds between two applies that nobody waits for: a storm of events ends in few writes."""

_RETRY_FIRST = 0.1
_RETRY_MOST = 30.0


class NotApplied(Exception):
    """What a caller waited for is not in the kernel; the failures say why."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self.failures = failures
        super().__init__("; ".join(f"{f.what}: {f.reason}" for f in failures[:3]))


class Reconciler:
    """Owns the only thread that touches the dataplane."""

    def __init__(
        self,
        planner: Planner,
        dataplane: Dataplane,
        collect: Callable[[Planner], None],
        metrics: Metrics,
        *,
        refresh_interval: float,
    ) -> None:
        """``collect`` moves everything noted since the last call into the planner; it runs on the event loop."""
        self._planner = planner
        self._dataplane = dataplane
        self._collect = collect
        self._metrics = metrics
        self._refresh_interval = refresh_interval
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dataplane")
        self._dirty = asyncio.Event()
        self._awaited = asyncio.Event()
        self._applied_at = -_REST
        self._waiters: list[asyncio.Future[tuple[Failure, ...]]] = []
        self._sweeping = False
        self._sweep_due = False
        self._failures: tuple[Failure, ...] = ()
        self.on_applied: list[Callable[[tuple[Failure, ...]], None]] = []
        """Called after each apply with what it could not write."""
        self._log = log.get("reconcile")

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What the last apply could not write."""
        return self._failures

    def note(self) -> None:
        """Something has changed; an apply follows soon."""
        self._dirty.set()

    def sweep(self) -> None:
        """Remove objects of ours that nobody asks for: with the next apply, and at every refresh from now on."""
        self._sweeping = self._sweep_due = True
        self.note()

    async def settled(self, concerns: Callable[[Failure], bool] = lambda _failure: True) -> None:
        """Return once everything noted before this call is in the kernel.

        Raises:
            NotApplied: the apply that carried it left failures that concern the caller.
        """
        waiter: asyncio.Future[tuple[Failure, ...]] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._awaited.set()
        self.note()
        failures = tuple(filter(concerns, await waiter))
        if failures:
            raise NotApplied(failures)

    async def differences(self) -> list[str]:
        """What the kernel does not have of the desired state; an apply that mends it follows."""
        found = await self.call(self._dataplane.differences)
        if found:
            self.note()
        return found

    async def call(self, function: Callable[[], T]) -> T:
        """Run something in the dataplane's thread, between two applies."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def run(self) -> None:
        """Apply until cancelled. The kernel keeps what was written last."""
        delay = 0.0
        refresh_at = time.monotonic() + self._refresh_interval
        try:
            while True:
                wait = delay or max(0.0, refresh_at - time.monotonic())
                refresh = await self._wait_for_work(wait) and not delay
                await self._apply(refresh=refresh)
                if refresh:
                    refresh_at = time.monotonic() + self._refresh_interval
                delay = self._next_delay(delay)
        finally:
            self._thread.shutdown(wait=True)

    async def _wait_for_work(self, seconds: float) -> bool:
        """Wait for a note, and then for more of them unless it is urgent; true when the time ran out instead."""
        try:
            async with asyncio.timeout(seconds):  # wait_for() can swallow a cancellation before Python 3.12
                await self._dirty.wait()
        except TimeoutError:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._applied_at + _REST):
                await self._awaited.wait()
        return False

    def _next_delay(self, delay: float) -> float:
        if not self._failures:
            return 0.0
        return min(_RETRY_MOST, delay * 2 or _RETRY_FIRST) * random.uniform(0.8, 1.2)

    async def _apply(self, *, refresh: bool) -> None:
        self._dirty.clear()
        self._awaited.clear()
        self._sweep_due |= refresh and self._sweeping
        waiters, self._waiters = self._waiters, []
        started = time.monotonic()
        try:
            report = await self._two_steps(refresh)
        except Exception as error:
            # A defect of ours, or a kernel that answers nonsense: what is enforced stays enforced; we try again.
            self._log.exception("apply failed")
            report = Report(failures=(Failure("apply", f"{type(error).__name__}: {error}"),))
        self._applied_at = asyncio.get_running_loop().time()
        self._metrics.apply_seconds.observe(time.monotonic() - started)
        self._note_failures(report.failures)
        self._tell(report.failures)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(report.failures)

    async def _two_steps(self, refresh: bool) -> Report:
        """First what must be there, then, if all of it is, what may go (see :mod:`felix_py.plan.planner`)."""
        self._collect(self._planner)
        update = self._planner.take()
        report = await self.call(lambda: self._write(update, refresh=refresh))
        if report.failures:
            return report
        later = self._planner.confirm()
        sweep, self._sweep_due = self._sweep_due, False
        if later or sweep:
            report = await self.call(lambda: self._write(later, sweep=sweep))
            self._sweep_due |= sweep and bool(report.failures)
        return report

    def _write(self, update: Update, *, refresh: bool = False, sweep: bool = False) -> Report:
        self._dataplane.update(update)
        if refresh:
            self._dataplane.load()
        report = self._dataplane.apply(sweep=sweep)
        self._metrics.restores.inc(report.transactions)
        self._metrics.writes.inc(report.writes)
        return report

    def _note_failures(self, failures: tuple[Failure, ...]) -> None:
        self._metrics.failures.set(len(failures))
        for failure in failures:
            if failure not in self._failures:
                self._log.error("cannot write", what=failure.what, reason=failure.reason)
        self._failures = failures

    def _tell(self, failures: tuple[Failure, ...]) -> None:
        for listener in self.on_applied:
            try:
                listener(failures)
            except Exception:
                self._log.exception("a listener failed")
