"""Waiting for one of several events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


async def any_of(events: Iterable[asyncio.Event], seconds: float | None) -> None:
    """Return once one of them is set, or after a time."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
