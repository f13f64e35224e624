"""The reconciler: coalesces changes, so that one apply brings the kernel to the newest state.

Changes are *noted* on the event loop, which is cheap, and *collected* into the planner only when an apply is
about to start. Changes that come while an apply runs in its thread share the next one.

An apply may begin by reading the kernel's state back: everything at each refresh, and parts of it when others may
have changed them. Reading the rules takes longest by far, so it has another thread, beside the applies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from felix_py import log
from felix_py.backoff import Backoff
from felix_py.dataplane.protocols import EVERYTHING, Dataplane, Look, RulesSnapshot
from felix_py.desired.planner import Planner
from felix_py.failures import Failures, Name, by_reason
from felix_py.metrics import Metrics
from felix_py.pace import sparingly
from felix_py.pending import Pending
from felix_py.records import Drift, Failure, Update
from felix_py.refs import ApplyRef, Ref, policy_rests_on
from felix_py.threads import Worker

T = TypeVar("T")

_REST = 0.05
"""Seconds between two applies without waiters, if the first one wrote: few writes in a storm of events."""

_REST_LEAST = 0.001
"""Seconds after the first of several applies that had nothing to write; doubled after each further one."""

_GATHER = (3.0, 0.005)
"""The next apply with waiters begins this many times as long after an apply as that one took, but at most so many
seconds: of 50 ADDs at once, two share an apply otherwise, and a fifth of their time is that of applies."""

_RETRY = (0.1, 30.0)

_NOTHING = Look(0)
_ENDED = Failures([Failure(ApplyRef(), "the agent is stopping")])
_MOST_LOGGED = 10


def leads_astray(failures: Iterable[Failure]) -> bool:
    """Whether a failure is of sets or rules, so that packets may still meet what the second step removes."""
    return any(policy_rests_on(failure.ref) for failure in failures)


class NotApplied(Exception):
    """The objects that a caller waited for are not in the kernel; ``failures`` say why."""

    def __init__(self, failures: tuple[Failure, ...]) -> None:
        self.failures = failures
        super().__init__("; ".join(map(str, failures[:3])))


class Reconciler:
    """Owns the only thread that touches the dataplane."""

    def __init__(
        self,
        pending: Pending,
        planner: Planner,
        dataplane: Dataplane,
        collect: Callable[[Planner], bool],
        metrics: Metrics,
        *,
        refresh_interval: float,
        patience: float = 2.0,
        abandon: Callable[[], object] = lambda: None,
        everybodys: Callable[[Failures], bool] = leads_astray,
        is_leaving: Callable[[Ref], bool] = lambda _ref: False,
        on_drift: Sequence[Callable[[Sequence[Drift]], None]] = (),
        on_applied: Sequence[Callable[[Failures], None]] = (),
    ) -> None:
        """``collect`` moves what was noted since the last call into the planner, on the event loop; it is called
        until it returns False.

        ``patience``: seconds that a running apply may take to end when the reconciler stops; ``abandon`` cuts off
        one that takes longer. ``everybodys``: whether failures that lead astray concern more than endpoints that
        wait for them. ``is_leaving``: whether the agent itself is removing an object, so that it is no drift; any
        thread asks. ``on_applied`` are called after each apply with its failures; ``on_drift`` before these, with
        the drift that the apply was to repair.
        """
        self._pending = pending
        self._everybodys = everybodys
        self._is_leaving = is_leaving
        self._abandon = abandon
        self._patience = patience
        self._planner = planner
        self._dataplane = dataplane
        self._collect = collect
        self._metrics = metrics
        self._refresh_interval = refresh_interval
        self._interval_changed = asyncio.Event()
        self._worker = Worker("dataplane")
        self._awaited = asyncio.Event()
        self._applied_at = -_REST
        self._pause = 0.0
        self._gather = 0.0
        self._retry = Backoff(*_RETRY, spread=0.2)
        self._written = 0
        self._waiters: list[asyncio.Future[Failures]] = []
        self._calls: set[asyncio.Future[Any]] = set()
        self._ended = False
        self._sweeping = False
        self._sweep_due = False
        self._keep_learned = False
        self._releasing = False
        self._leaving = Update()
        self._untaken = Update()
        self._clean = asyncio.Event()
        self._read = _NOTHING
        self._looks = _NOTHING
        self._look_seconds = 0.0
        self._unread: dict[Look, str] = {}
        self._looked: str | None = None
        self._compared_at = time.monotonic()
        self._rules_read: RulesSnapshot | None = None
        self.failures = Failures()
        """Failures of the last apply."""
        self._last_drift: tuple[float, list[str]] | None = None
        self._on_applied = on_applied
        self._on_drift = on_drift
        self._drift: list[Drift] = []
        self._log = log.get("reconcile")

    @property
    def last_drift(self) -> tuple[float, list[str]] | None:
        """Seconds since drift was last found, and the objects; None if there was none so far."""
        return (time.monotonic() - self._last_drift[0], self._last_drift[1]) if self._last_drift else None

    @property
    def compared_age(self) -> float:
        """Seconds since all objects of ours in the kernel were last compared with the desired state."""
        return time.monotonic() - self._compared_at

    @property
    def unread(self) -> str:
        """Why the last attempt to read a part of the kernel back failed; empty if all parts could be read."""
        return next(iter(self._unread.values()), "")

    @property
    def unenforced(self) -> Failure | None:
        """A failure of the last apply that concerns an object policy rests on, or None."""
        return next((failure for failure in self.failures if policy_rests_on(failure.ref)), None)

    def sizes(self) -> dict[str, int]:
        """Number of wanted objects in the kernel, by kind; ``class``: policy classes that have a number."""
        return {**self._dataplane.sizes(), "class": self._planner.classes}

    def hold(self) -> None:
        """Plan nothing until :meth:`begin`, and keep the objects that the dataplane holds as they are."""
        self._sweeping = True
        self._pending.hold(held=True)

    def let_go(self, update: Update) -> None:
        """While holding, stop to hold these objects; later the plan removes them and this does nothing."""
        if self._pending.held:
            self._leaving.merge(update)
            self._pending.due.set()

    def begin(self) -> None:
        """End holding: the inputs of the plan are complete, and it decides from now on."""
        self._sweeping, self._releasing = False, self._pending.held
        self._pending.hold(held=False)

    def sweep(self, *, keep_learned: bool = False) -> None:
        """Remove objects of ours that are not desired: with the next apply, and at every refresh from now on.

        ``keep_learned``: except learned routes, until the next such call.
        """
        self._sweeping = self._sweep_due = True
        self._keep_learned = keep_learned
        self._pending.note()

    async def clean(self) -> None:
        """Return once nothing stale is in force: the kernel was read, written and swept in one apply.

        Failures of routes, interfaces and sysctls do not matter for that; nor do those of some endpoints' policy,
        which wait for it themselves (:attr:`unenforced` shows them). It stays true.
        """
        self._read = _NOTHING
        self._looks |= EVERYTHING
        self._awaited.set()
        self._pending.note()
        await self._clean.wait()

    async def settled(self, names: Callable[[], Iterable[Name]] | None = None) -> None:
        """Return once everything noted before this call is in the kernel.

        ``names`` returns the names of objects whose failures concern the caller, and is called after the apply;
        None: all failures do. Raises NotApplied if there are such failures.
        """
        failures = await self._applied()
        concerned = tuple(failures) if names is None else failures.naming(names()) if failures else ()
        if concerned:
            raise NotApplied(concerned)

    async def _applied(self) -> Failures:
        """Failures of the next apply that begins; after the end, the failure that there will be none."""
        if self._ended:
            return _ENDED
        waiter: asyncio.Future[Failures] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._awaited.set()
        self._pending.due.set()
        return await waiter

    async def differences(self) -> list[Ref]:
        """Desired objects that the kernel lacks; an apply repairs them. Raises NotApplied after the end."""
        if self._ended:
            raise NotApplied(tuple(_ENDED))
        found = await self.call(self._dataplane.differences)
        if found:
            self._pending.due.set()
        return found

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function in the dataplane's thread, between two applies. Cancelled when the reconciler ends."""
        called = self._worker.submit(function)
        self._calls.add(called)
        try:
            return await called
        finally:
            self._calls.discard(called)

    async def run(self) -> None:
        """Apply until cancelled; cannot be run again. The kernel keeps what was written last.

        Waiters are then told that there will be no apply. A running one gets a few seconds to end; then its tools
        are killed.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._apply_for_ever())
                tasks.create_task(self._refresh_for_ever())
                take = self._pending.take_look
                tasks.create_task(self._pending.prompt.run(lambda: self._look_with_next_apply(take())))
                tasks.create_task(self._pending.rules.run(lambda: self._read_back(Look.RULES)))
                tasks.create_task(sparingly(self._count))
        finally:
            self._end()
            await self._leave_thread()

    def _end(self) -> None:
        self._ended = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(_ENDED)
        for call in self._calls:
            call.cancel()

    async def _leave_thread(self) -> None:
        idle = self._worker.submit(lambda: None)
        if not (await asyncio.wait((idle,), timeout=self._patience))[0]:
            self._log.warning("an apply does not come to an end: its tools are killed, because the agent stops")
            self._abandon()
            await asyncio.wait((idle,), timeout=self._patience)
        self._worker.close(wait=False)

    # --- looking -------------------------------------------------------------------------------------

    def set_refresh_interval(self, seconds: float) -> None:
        """Change the time between two comparisons; the next one is so long after now."""
        self._refresh_interval = seconds
        self._interval_changed.set()

    async def _refresh_for_ever(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._interval_changed.wait(), self._refresh_interval)
                self._interval_changed.clear()
            except TimeoutError:
                await self._read_back(EVERYTHING)

    async def _read_back(self, look: Look) -> float:
        """Read the rules beside the applies, then have the next apply compare. Returns the seconds of work."""
        started = time.monotonic()
        try:
            self._rules_read = await asyncio.to_thread(self._dataplane.read_rules)
        except Exception as error:
            self._note_unread(Look.RULES, _reason(error))
            self._pending.rules.ask()
            look &= ~Look.RULES
        reading = time.monotonic() - started
        return reading + (await self._look_with_next_apply(look) if look else 0.0)

    async def _count(self) -> float:
        """Ask for a look at what the kernel sends no events of, where its numbers have changed."""
        started, look, ended = await self.call(
            lambda: (time.thread_time(), self._dataplane.miscounted(), time.thread_time())
        )
        self._pending.look(look)
        return ended - started

    async def _look_with_next_apply(self, look: Look) -> float:
        self._looks |= look
        await self._applied()
        return self._look_seconds

    # --- applying ------------------------------------------------------------------------------------

    async def _apply_for_ever(self) -> None:
        delay = 0.0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay or None):  # wait_for() can swallow a cancellation before 3.12
                    await self._pending.due.wait()
            await self._rest()
            await self._apply()
            delay = self._retry.delay() if self.failures else 0.0
            if not self.failures:
                self._retry.reset()

    async def _rest(self) -> None:
        """Let changes gather: for a moment only if there is a waiter.

        Without one, the rest is long after writes. It is short after an apply that had nothing to write, so that
        the next change is not late for it, and doubles with each further one, since such an apply costs, too.
        """
        if asyncio.get_running_loop().time() - self._applied_at >= _REST:
            self._pause = 0.0
        if not self._awaited.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._applied_at + self._pause):
                    await self._awaited.wait()
        if (left := self._applied_at + self._gather - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)

    async def _apply(self) -> None:
        self._pending.due.clear()
        self._awaited.clear()
        look, self._looks = self._looks, _NOTHING
        if self.failures:
            self._metrics.retries.inc()
        self._sweep_due |= bool(look) and self._sweeping
        waiters, self._waiters = self._waiters, []
        started, holding, written = time.monotonic(), self._pending.held, self._written
        noted = None if holding else self._pending.take_noted()
        try:
            failures = await self._two_steps(look)
        except MemoryError:  # an update in transit may be lost: only a restart helps
            raise
        except Exception as error:
            # A defect of ours, or a kernel that answers nonsense: what is enforced stays enforced, and we retry.
            self._log.exception("apply failed")
            failures = Failures([Failure(ApplyRef(), f"{type(error).__name__}: {error}")])
            self._sweep_due = self._sweeping
            self._pending.look(look)
            self._pending.give_back_noted(noted)
        except BaseException:  # cancelled
            self._waiters += waiters
            raise
        self._pause = min(_REST, 2 * self._pause or _REST_LEAST) if self._written == written else _REST
        self._applied_at = asyncio.get_running_loop().time()
        self._note_look(look)
        ended = time.monotonic()
        times, most = _GATHER
        self._gather = min(times * (ended - started), most)
        self._metrics.apply_seconds.observe(ended - started)
        if noted is not None and self._written != written:
            self._metrics.event_seconds.observe(ended - noted)
        self._note_failures(failures)
        drift, self._drift = self._drift, []
        if not holding:
            if drift:
                self._tell(self._on_drift, drift)
            self._tell(self._on_applied, failures)
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(failures)

    def _note_look(self, look: Look) -> None:
        """Note the result of reading these parts back, which an apply began with."""
        if not look:
            return
        reason, self._looked = self._looked, None
        if reason:
            self._note_unread(look, reason)
            self._pending.look(look)
        elif reason is not None:
            self._unread = {part: why for part, why in self._unread.items() if part not in look}
            if look == EVERYTHING:
                self._compared_at = time.monotonic()

    def _note_unread(self, look: Look, reason: str) -> None:
        """Note parts that could not be read; each counts as unread until it has been."""
        if reason not in self._unread.values():
            self._log.warning("cannot read the kernel back; trying again", reason=reason)
        self._unread |= dict.fromkeys(look, reason)

    async def _two_steps(self, look: Look) -> Failures:
        """Write what must exist, then, if that succeeds, remove the rest (:mod:`felix_py.desired.planner`)."""
        if self._pending.held:
            return await self._keep(look)
        # Before collecting: a sweep requested from here on belongs to the next apply, since this one's plan may
        # lack the facts that it follows.
        sweep, self._sweep_due, keep_learned = self._sweep_due, False, self._keep_learned
        while self._collect(self._planner):  # noqa: ASYNC110 - no waiting: it yields to other tasks
            await asyncio.sleep(0)
        update = self._planner.take()
        rules, self._rules_read = self._rules_read, None
        release = self._releasing
        failures = await self.call(lambda: self._write(update, look, rules, release=release))
        if leads_astray(failures):
            self._sweep_due |= sweep
            if sweep and not self._everybodys(failures):
                # The sweep happens all the same: one policy that cannot be written must not hold up other pods.
                failures = await self.call(lambda: self._write(Update(), sweep=True, keep_learned=keep_learned))
                self._note_clean(failures)
            return failures
        later = self._planner.confirm()
        if later or sweep:
            # The second step retries the failures of the first, and reports them.
            failures = await self.call(lambda: self._write(later, sweep=sweep, keep_learned=keep_learned))
            self._sweep_due |= sweep and bool(failures)
        if sweep:
            self._note_clean(failures)
        return failures

    def _note_clean(self, failures: Failures) -> None:
        if self._read == EVERYTHING and not self._everybodys(failures):
            self._clean.set()

    async def _keep(self, look: Look) -> Failures:
        """Repair drift of the objects that are held."""
        leaving, self._leaving = self._leaving, Update()
        rules, self._rules_read = self._rules_read, None
        sweep, self._sweep_due = self._sweep_due, False
        return await self.call(lambda: self._write(leaving, look, rules, sweep=sweep))

    def _write(
        self,
        update: Update,
        look: Look = _NOTHING,
        rules: RulesSnapshot | None = None,
        *,
        release: bool = False,
        sweep: bool = False,
        keep_learned: bool = False,
    ) -> Failures:
        # The planner returns each change once: one that the dataplane did not take up whole is passed again.
        if self._untaken:
            self._untaken.merge(update)
        else:
            self._untaken = update
        if release:
            self._dataplane.release()
            self._releasing = False
        self._dataplane.update(self._untaken)
        self._untaken = Update()
        if look:
            self._read_kernel(look, rules)
        report = self._dataplane.apply(sweep=sweep, keep_learned=keep_learned)
        self._metrics.restores.inc(report.transactions)
        self._metrics.writes.inc(report.writes)
        self._metrics.lock_waits.inc(report.lock_waits)
        self._metrics.lock_seconds.inc(report.lock_seconds)
        self._written += report.writes
        self._note_drift([drift for drift in self._dataplane.take_drift() if not self._is_leaving(drift.ref)])
        return Failures(report.failures)

    def _read_kernel(self, look: Look, rules: RulesSnapshot | None) -> None:
        """Read back. If that fails, the desired state is written all the same: a new pod must not wait for it."""
        started = time.monotonic()
        try:
            self._dataplane.load(look, rules)
            self._read |= look
            self._looked = ""
        except Exception as error:
            self._looked = _reason(error)
        self._look_seconds = time.monotonic() - started

    def _note_drift(self, drift: Sequence[Drift]) -> None:
        if not drift:
            return
        self._drift += drift
        for found in drift:
            self._metrics.drift.labels(found.ref.kind).inc(found.count)
        shown = [str(found) for found in drift[:_MOST_LOGGED]]
        if more := sum(found.count for found in drift[_MOST_LOGGED:]):
            shown.append(f"and {more} more")
        self._last_drift = (time.monotonic(), shown)
        self._log.warning("somebody else has changed what is ours; putting it right", found=shown)

    def _note_failures(self, failures: Failures) -> None:
        self._metrics.failures.set(failures.objects)
        for reason, what in by_reason(failures.besides(self.failures)).items():
            self._log.error("cannot write", what=what, reason=reason)
        self.failures = failures
        self._pending.applied(failed=bool(failures))

    def _tell(self, listeners: Iterable[Callable[[T], None]], news: T) -> None:
        for listener in listeners:
            try:
                listener(news)
            except MemoryError:
                raise
            except Exception:
                self._log.exception("a listener failed")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
