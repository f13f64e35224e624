"""Notes on disk of a node's blocks, for its agent's next start: which it has, and which it has given back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from felix_py.agent.last_good import Kept

_MOST_CLOSED = 1000
"""Uids of blocks given back that are kept; no list of the API server is so old that it has one before these."""


class BlockNotes:
    """On the event loop only; one write at a time, so that the file ends as the last one wants it."""

    def __init__(self, state_dir: Path) -> None:
        self.file = Kept(state_dir / "blocks.json")
        fields, self.lost = self.file.read()
        """``lost``: why the notes of an earlier life cannot be read, or empty."""
        self.own: list[str] = (fields or {}).get("own", [])
        """CIDRs of the node's blocks."""
        self.closed: list[str] = (fields or {}).get("closed", [])
        """Uids of blocks and loans that it gives back, or has given back."""
        self._owed = False
        """Whether the last write failed."""
        self._lock = asyncio.Lock()

    @property
    def any(self) -> bool:
        """Whether there is, or was, a block."""
        return bool(self.own or self.closed)

    async def have(self, own: list[str]) -> str | None:
        """Note the node's blocks, and again whatever could not be noted; returns why that cannot be, or empty.
        None: there was nothing to note."""
        async with self._lock:
            if own == self.own and not self._owed:
                return None
            self.own = own
            return await self._write()

    async def close(self, uids: Iterable[str]) -> str:
        """Note what is given back; returns why that cannot be, or empty. Then it is not given back."""
        async with self._lock:
            before = self.closed
            self.closed = [*before, *uids][-_MOST_CLOSED:]
            if problem := await self._write():
                self.closed = before
            return problem

    async def _write(self) -> str:
        fields = {"own": self.own, "closed": self.closed}
        try:
            await asyncio.to_thread(self.file.write, fields)
        except OSError as error:
            self._owed = True
            return error.strerror or str(error)
        self._owed = False
        return ""
