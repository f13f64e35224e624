"""Threads that work for the event loop, one job after the other.

A CNI call passes through several of them, so what a hand-over costs counts: a thread pool's futures, and their
chaining to asyncio's, take more of the loop's time than most jobs do. Here a job goes by one queue, and its
result by one call to the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Job = TypeVar("Job")
Result = TypeVar("Result")

Done = Sequence[tuple["asyncio.Future[Any]", Any]]
"""Futures and what they are told: a result, or an exception."""


class Worker:
    """One thread. A result that is an exception is raised to who waits for it."""

    def __init__(self, name: str) -> None:
        """Start the thread now.

        A thread started without memory for it dies before it signals ``Thread.start``, which then blocks the
        event loop for ever.
        """
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Call ``function`` in the thread. Cancelled before its turn, it is not called.

        Raises:
            RuntimeError: the worker is closed.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.post(partial(_call, function, future))
        return future

    def post(self, job: Callable[[], object]) -> None:
        """Have the thread do what cannot fail. Raises as :meth:`submit` does."""
        if self._closed:
            raise RuntimeError("the worker is closed")
        self._jobs.put(job)

    def close(self, *, wait: bool = True) -> None:
        """End the thread after the jobs that it has; idempotent."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # while the next one is waited for, nothing of this one is kept


class Batcher(Generic[Job, Result]):
    """Group commit: runs all waiting jobs as one batch in a thread of its own.

    A single job starts at once; in a burst, the fixed cost of a batch (a disk flush, an RCU grace period of the
    kernel) is shared by all jobs submitted while the last batch ran.
    """

    def __init__(self, name: str, run: Callable[[Sequence[Job]], Sequence[Result | Exception]]) -> None:
        """``run`` returns a result or an exception for each job of a batch; an exception raised is for all."""
        self._job = run
        self._waiting: SimpleQueue[tuple[Job, asyncio.Future[Result]]] = SimpleQueue()
        self._worker = Worker(name)

    async def submit(self, job: Job) -> Result:
        """Run a job and return its result. The job runs even if the caller is cancelled meanwhile."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put((job, future))
        self._worker.post(self._batch)
        return await future

    def close(self) -> None:
        """Wait for the jobs under way; call no :meth:`submit` afterwards."""
        self._worker.close()

    def _batch(self) -> None:
        batch: list[tuple[Job, asyncio.Future[Result]]] = []
        with suppress(Empty):
            while True:
                batch.append(self._waiting.get_nowait())
        if not batch:
            return  # an earlier batch had the job
        results: Sequence[Result | Exception]
        try:
            results = self._job([job for job, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        tell([(future, result) for (_, future), result in zip(batch, results, strict=True)])


def _call(function: Callable[[], T], future: asyncio.Future[T]) -> None:
    if future.cancelled():
        return
    result: T | Exception
    try:
        result = function()
    except Exception as error:
        result = error
    tell([(future, result)])


def tell(done: Done) -> None:
    """Tell futures of one loop, from any thread. Those that are cancelled are not told."""
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        done[0][0].get_loop().call_soon_threadsafe(_set, done)


def _set(done: Done) -> None:
    for future, result in done:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
