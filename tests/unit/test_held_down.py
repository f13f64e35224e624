"""Which BGP peers are held down, kept for the agent's next life."""

from __future__ import annotations

from pathlib import Path

import pytest

from bgp.control import HOLD_DOWN, Control, Held
from felix_py.agent.held_down import HeldDown

HELD = {"10.0.0.1": Held(10, 400.5), "fd00::1": Held(0, 300.0)}


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert HeldDown(tmp_path).read() == {}
    HeldDown(tmp_path).write(HELD)
    assert HeldDown(tmp_path).read() == HELD
    HeldDown(tmp_path).write({})
    assert HeldDown(tmp_path).read() == {}


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "sha256": "", "fields": {}}', "\0\0"])
def test_a_damaged_file_holds_nobody_down(tmp_path: Path, text: str) -> None:
    HeldDown(tmp_path).write(HELD)
    (tmp_path / "bgp-held-down.json").write_text(text)
    assert HeldDown(tmp_path).read() == {}


def test_a_folder_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("no folder")
    HeldDown(tmp_path / "run").write(HELD)


@pytest.mark.parametrize(
    ("now", "held"),
    [(400.0, True), (400.5, False), (1e6, False), (400.5 - HOLD_DOWN, True), (400.0 - HOLD_DOWN, False)],
)
def test_what_another_life_of_the_clock_has_written_holds_nobody_for_long(now: float, held: bool) -> None:
    control = Control()
    control.hold("10.0.0.1", HELD["10.0.0.1"], now)
    assert bool(control.held_reason("10.0.0.1", now)) == held
