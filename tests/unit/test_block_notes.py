"""What is noted of blocks: whatever is noted at once, and whatever the disk says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from felix_py.agent.block_notes import BlockNotes
from tests.support.slow_write import slow_first_write


@pytest.mark.parametrize("fails", [False, True])
async def test_two_at_once(tmp_path: Path, fails: bool) -> None:
    """The write of the first could come last, without the second; if it failed, the second was undone."""
    notes = BlockNotes(tmp_path)
    first = slow_first_write(notes.file, fails=fails)
    one = asyncio.create_task(notes.close(["a"]))
    await asyncio.to_thread(first.wait)
    found = tuple(await asyncio.gather(one, notes.close(["b"]), notes.have(["10.0.0.0/28"])))
    assert found == ("No space left on device" if fails else "", "", "")
    kept = BlockNotes(tmp_path)
    assert kept.closed == notes.closed == (["b"] if fails else ["a", "b"])
    assert kept.own == ["10.0.0.0/28"]


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
