"""The end of an agent that gets no memory.

Almost any step may then break off halfway. Where that could leave what the agent knows, or has yet to write, in
neither of two places, nobody goes on (``except MemoryError: raise``): the process ends, the kernel keeps what is
in force, and the next start reads everything again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import Any

from felix_py import log

WORDS = (
    "out of memory: some of what it was told may be lost, so the agent ends; what is in the kernel stays, "
    "and the next start reads everything again"
)


_LINE = f"felix-py agent: {WORDS}\n".encode()
_SECONDS = 2
"""For the last line, where nobody reads stderr."""


def guard() -> None:
    """From now on a thread that dies of a lack of memory takes the process along.

    One that dies before it has quite begun would otherwise be waited for, for ever, by whoever started it
    (``threading.Thread.start``): that is the event loop, mostly. Where there is not even memory to call this, it
    still is; so threads that are needed for long begin at the start (:func:`felix_py.cni.batch.begin`).
    """
    unraisable, uncaught = sys.unraisablehook, threading.excepthook

    def on_unraisable(args: sys.UnraisableHookArgs) -> None:
        if args.exc_type is MemoryError:
            _end()
        unraisable(args)

    def on_uncaught(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is MemoryError:
            _end()
        uncaught(args)

    sys.unraisablehook, threading.excepthook = on_unraisable, on_uncaught


def _end() -> None:
    """Without anything that takes memory."""
    try:
        signal.alarm(_SECONDS)
        os.write(2, _LINE)
    finally:
        os._exit(1)


def is_lack(error: BaseException | None) -> bool:
    """Whether an exception, or one of a group, is a lack of memory."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(MemoryError) is not None
    return isinstance(error, MemoryError)


def unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: what a callback was given is lost with the callback."""
    if not is_lack(context.get("exception")):
        loop.default_exception_handler(context)
        return
    try:
        log.get("agent").error(WORDS)
        log.flush()
    finally:
        os._exit(1)
