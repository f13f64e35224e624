"""Group commit: jobs submitted while a batch runs form the next batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def begin(executor: ThreadPoolExecutor) -> None:
    """Start the executor's first thread now.

    A thread started without memory for it dies before it signals ``Thread.start``, which then blocks the event
    loop for ever.
    """
    executor.submit(int)


class Batcher(Generic[Job, Result]):
    """Runs all waiting jobs as one batch in a thread of its own.

    A single job starts at once; in a burst, the fixed cost of a batch (a disk flush, an RCU grace period of the
    kernel) is shared by all jobs submitted while the last batch ran.
    """

    def __init__(self, name: str, run: Callable[[Sequence[Job]], Sequence[Result | Exception]]) -> None:
        """``run`` returns a result or an exception for each job of a batch; an exception raised is for all."""
        self._run = run
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        begin(self._thread)
        self._waiting: list[tuple[Job, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, job: Job) -> Result:
        """Run a job and return its result. The job runs even if the caller is cancelled meanwhile."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        return await future

    def close(self) -> None:
        """Wait for the batch under way; call no :meth:`submit` afterwards."""
        self._thread.shutdown()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                jobs = [job for job, _ in batch]
                try:
                    results = await loop.run_in_executor(self._thread, self._run, jobs)
                except Exception as error:
                    results = [error] * len(batch)
                for (_, future), result in zip(batch, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._running = None
