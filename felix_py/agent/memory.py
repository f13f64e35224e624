"""The agent's end when memory is exhausted.

A MemoryError may interrupt almost any step. Where that could lose facts or pending writes on their way from one
place to another, it is not handled (``except MemoryError: raise``): the process ends, the kernel keeps what is in
force, and the next start reads everything again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from felix_py import log

WORDS = (
    "out of memory: some of what it was told may be lost, so the agent ends; what is in the kernel stays, "
    "and the next start reads everything again"
)


_LINE = f"felix-py agent: {WORDS}\n".encode()
_SECONDS = 2
"""Time limit for writing the last line, as the reader of stderr may be stuck."""


def guard() -> None:
    """Install hooks that end the process when a MemoryError ends a thread.

    ``threading.Thread.start``, mostly called on the event loop, would otherwise wait for ever for a thread that
    dies before it has begun. It still does if there is no memory to call the hooks; so long-lived threads begin
    at the agent's start (:func:`felix_py.threads.Worker`).
    """

    def guarded(hook: Callable[[Any], object]) -> Callable[[Any], None]:
        def guarding(args: sys.UnraisableHookArgs | threading.ExceptHookArgs) -> None:
            if args.exc_type is MemoryError:
                _end()
            hook(args)

        return guarding

    sys.unraisablehook, threading.excepthook = guarded(sys.unraisablehook), guarded(threading.excepthook)


def _end() -> None:
    """End the process without allocating memory."""
    try:
        signal.alarm(_SECONDS)
        os.write(2, _LINE)
    finally:
        os._exit(1)


def is_lack(error: BaseException | None) -> bool:
    """Whether an exception, or one of a group, is a MemoryError."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(MemoryError) is not None
    return isinstance(error, MemoryError)


def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: it ends the process, as a failed callback's arguments are lost."""
    if not is_lack(context.get("exception")):
        loop.default_exception_handler(context)
        return
    try:
        log.get("agent").error(WORDS)
        log.flush()
    finally:
        os._exit(1)
