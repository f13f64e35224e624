"""The spool: calls that clients made while nobody listened, for the agent that listens next to make up for.

The runtime was told that a spooled DEL has succeeded, so it does not repeat it, and may have removed the network
namespace with the interface.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from felix_py import log
from felix_py.backoff import Backoff
from felix_py.cni.protocol import MOST_FRAME, Answer, Call, ProtocolError, parse_call
from felix_py.cni.types import Before, Command

_LOCK_TIMEOUT = 5.0
_RETRY = (1.0, 300.0)
"""Seconds until a DEL that has failed is made up for again."""


class Spool:
    """The calls in ``folder``, for one event loop."""

    def __init__(
        self,
        folder: Path,
        answer: Callable[[Call, Before], Awaitable[Answer]],
        leaving: Callable[[str, str, Before], None],
        begin: Callable[[Coroutine[Any, Any, None]], None],
        present: Callable[[], Before],
    ) -> None:
        """``answer`` executes a call. ``leaving`` is told of each DEL as soon as it is found: container, ifname.
        Both are told which leases there were then, as ``present`` has them: calls are for no later ones.
        ``begin`` runs what executes calls."""
        self._folder = folder
        self._answer = answer
        self._leaving = leaving
        self._begin = begin
        self._present = present
        self._failed: set[Path] = set()
        """Those that are to be made up for again."""
        self._calls: dict[Path, Call] = {}
        """Those that were found, oldest first."""
        self._backoff = Backoff(*_RETRY)
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopped = False
        self.under_way = asyncio.Event()
        """Set once the calls that were there were begun: an ADD of the same interface comes after them."""
        self._log = log.get("cni")

    def start(self) -> None:
        """Tell of the DELs that are there, at once, and have all calls executed. The agent's socket listens."""
        self.under_way.clear()
        before = self._present()
        with suppress(OSError):  # _drain() says it
            self._find(_entries(self._folder), before)
        self._begin(self._drain(before))

    def stop(self) -> None:
        """Begin nothing more; what has failed is left for the next agent."""
        self._stopped = True
        for timer in self._timers:
            timer.cancel()

    async def _drain(self, before: Before) -> None:
        """Execute the calls, DELs first and all at once.

        A GC that fails is not repeated: its list of attachments is of the moment of the call, and later it would
        remove those added since.
        """
        try:
            self._find(await asyncio.to_thread(_settled_entries, self._folder), before)
        except OSError as error:
            self._log.error("cannot read the CNI spool", folder=str(self._folder), reason=str(error))
        calls, self._calls = self._calls, {}
        once = [call for entry, call in calls.items() if _is(Command.GC, call) and self._remove(entry)]
        await self._make_up({entry: call for entry, call in calls.items() if not _is(Command.GC, call)}, before)
        for call in once:
            await self._answer(call, before)

    async def _make_up(self, calls: Mapping[Path, Call], before: Before) -> None:
        """Execute calls at once, and those that fail again later: nobody else repeats them."""
        failed = {}
        answering = asyncio.gather(*(self._answer(call, before) for call in calls.values()))
        self.under_way.set()
        answers = await answering
        for (entry, call), answer in zip(calls.items(), answers, strict=True):
            if answer.code:
                failed[entry] = call
            else:
                with suppress(OSError):
                    entry.unlink(missing_ok=True)
        self._failed = self._failed - calls.keys() | failed.keys()
        if failed and not self._stopped:
            loop, again = asyncio.get_running_loop(), partial(self._make_up, failed, before)
            self._timers = {timer for timer in self._timers if timer.when() > loop.time()}
            self._timers.add(loop.call_later(self._backoff.delay(), lambda: self._begin(again())))

    def _find(self, entries: Iterable[Path], before: Before) -> None:
        """Read those that were not found before, and tell of the DELs among them."""
        for entry in entries:
            if entry in self._calls or entry in self._failed or (call := self._read(entry)) is None:
                continue
            self._calls[entry] = call
            if _is(Command.DEL, call):
                container, ifname = (call.environment.get(name, "") for name in ("CNI_CONTAINERID", "CNI_IFNAME"))
                self._leaving(container, ifname, before)

    def _remove(self, entry: Path) -> bool:
        """Remove the file of a call that must not be repeated; whether that was possible."""
        try:
            entry.unlink()
        except OSError as error:
            self._log.error("cannot use a spooled CNI call", file=str(entry), reason=str(error))
            return False
        return True

    def _read(self, entry: Path) -> Call | None:
        """Read a spooled call; what is none is put aside."""
        try:
            found = entry.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise ProtocolError("it is no file")
            if found.st_size > MOST_FRAME:
                raise ProtocolError(f"it has {found.st_size} bytes")
            return parse_call(entry.read_bytes())
        except ProtocolError as error:
            self._log.error("a file in the CNI spool is not a call", file=str(entry), reason=str(error))
            with suppress(OSError):
                entry.rename(entry.with_name(f".rejected-{entry.name}"))
        except OSError as error:
            self._log.error("cannot use a spooled CNI call", file=str(entry), reason=str(error))
        return None


def _is(command: Command, call: Call) -> bool:
    return call.environment.get("CNI_COMMAND") == command


def _entries(folder: Path) -> list[Path]:
    """The spooled calls, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _settled_entries(folder: Path) -> list[Path]:
    """The spooled calls, oldest first, once no client is about to write one.

    A client without a listening agent holds the folder's shared lock until its call is in the spool. The socket
    listens already, so once the exclusive lock has been held, no new call can arrive here.
    """
    if not folder.is_dir():
        return []
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while time.monotonic() < deadline:  # a hung client must not block the rest
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        return _entries(folder)
    finally:
        os.close(fd)
