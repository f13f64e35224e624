"""The end of an agent that gets no memory.

Almost any step may then break off halfway. Where that could leave what the agent knows, or has yet to write, in
neither of two places, nobody goes on (``except MemoryError: raise``): the process ends, the kernel keeps what is
in force, and the next start reads everything again.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from felix_py import log

WORDS = (
    "out of memory: some of what it was told may be lost, so the agent ends; what is in the kernel stays, "
    "and the next start reads everything again"
)


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
