"""Runs another CNI plugin with bounded time and output."""

from __future__ import annotations

import asyncio
from contextlib import suppress

MOST = 1 << 20
"""Bytes of each output that are kept; the rest is read and discarded."""


async def talk(process: asyncio.subprocess.Process, stdin: bytes, timeout: float) -> tuple[bytes, bytes]:
    """Pass stdin to a program; returns stdout and stderr. The program has ended afterwards in any case.

    Raises:
        TimeoutError: it did not end within ``timeout`` seconds.
    """
    try:
        async with asyncio.timeout(timeout):
            _, output, errors = await asyncio.gather(
                _write(process.stdin, stdin), _read(process.stdout), _read(process.stderr)
            )
            await process.wait()
            return output, errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _write(stream: asyncio.StreamWriter | None, data: bytes) -> None:
    if stream is None:
        return
    with suppress(BrokenPipeError, ConnectionResetError):  # it does not read its input; its exit code counts
        stream.write(data)
        await stream.drain()
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.close()


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    kept = bytearray()
    while stream is not None and (piece := await stream.read(1 << 16)):
        kept += piece[: MOST - len(kept)]
    return bytes(kept)
