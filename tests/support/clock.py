"""A wall clock of their own for programs that a test starts; the machine's stays, and no namespace has one."""

from __future__ import annotations

from pathlib import Path

import pytest

_MODULE = """
import time
_now = time.time

def jumped():
    with open({offset!r}) as file:
        return _now() + float(file.read())

time.time = jumped
time.time_ns = lambda: int(jumped() * 1e9)
"""


class Clock:
    """What Python programs read that are really started (``@pytest.mark.started``) from now on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self._offset = folder / "offset"
        self.jump(0)
        (folder / "sitecustomize.py").write_text(_MODULE.format(offset=str(self._offset)))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    def jump(self, seconds: float) -> None:
        """Have it differ from the machine's by this."""
        aside = self._offset.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.rename(self._offset)
