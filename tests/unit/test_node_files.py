"""``felix-py cleanup --everything`` leaves nothing of ours in a node's files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import felix_py
from felix_py.cli import node_files

KEPT = re.compile(r'(state_dir|run_dir)\s*/\s*"([\w-]+\.json)"')


def kept() -> set[tuple[str, str]]:
    """(kind of folder, name) of each file that the agent's source names there."""
    sources = Path(felix_py.__file__).parent.joinpath("agent").rglob("*.py")
    return {pair for source in sources for pair in KEPT.findall(source.read_text())}


def test_source_names_those_that_are_expected() -> None:
    assert ("state_dir", "blocks.json") in kept()
    assert ("run_dir", "bgp-passwords.json") in kept()


@pytest.mark.parametrize(("folder", "name"), sorted(kept()))
def test_each_file_that_an_agent_keeps_is_removed(tmp_path: Path, folder: str, name: str) -> None:
    whole, cut_off = tmp_path / name, tmp_path / f".{name}.x1y2"
    for path in (whole, cut_off):
        path.touch()
    found = {"state_dir": node_files.state, "run_dir": node_files.run}[folder](tmp_path)
    assert found == [cut_off, whole, tmp_path]
    assert node_files.remove(found, (tmp_path,)) == []
    assert not tmp_path.exists()
