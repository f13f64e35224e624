"""What is noted of blocks: whatever is noted at once, and whatever the disk says."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from felix_py.agent.block_notes import BlockNotes, had_blocks


@pytest.mark.parametrize("fails", [False, True])
async def test_two_at_once(tmp_path: Path, fails: bool) -> None:
    """The write of the first could come last, without the second; if it failed, the second was undone."""
    notes = BlockNotes(tmp_path)
    write, second, first = notes.file.write, threading.Event(), threading.Event()

    def slow(fields: dict[str, Any]) -> None:
        if not first.is_set():
            first.set()
            second.wait(0.5)
            if fails:
                raise OSError(28, "No space left on device")
            write(fields)
        else:
            write(fields)
            second.set()

    notes.file.write = slow  # type: ignore[method-assign]
    one = asyncio.create_task(notes.close(["a"]))
    await asyncio.to_thread(first.wait)
    found = tuple(await asyncio.gather(one, notes.close(["b"]), notes.have(["10.0.0.0/28"])))
    assert found == ("No space left on device" if fails else "", "", "")
    kept = BlockNotes(tmp_path)
    assert kept.closed == notes.closed == (["b"] if fails else ["a", "b"])
    assert kept.own == ["10.0.0.0/28"]
    assert had_blocks(tmp_path)


async def test_what_could_not_be_noted_is_owed(tmp_path: Path) -> None:
    notes = BlockNotes(tmp_path)
    assert not notes.any
    assert await notes.have([]) is None
    notes.file.path.mkdir()
    assert await notes.have(["10.0.0.0/28"])
    assert await notes.have(["10.0.0.0/28"])
    notes.file.path.rmdir()
    assert await notes.have(["10.0.0.0/28"]) == ""
    assert await notes.have(["10.0.0.0/28"]) is None
