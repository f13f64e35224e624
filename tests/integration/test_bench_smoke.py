"""Every benchmark still runs. What they measure is looked at by people, not asserted here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import NAMES

pytestmark = pytest.mark.root

ROOT = Path(__file__).parents[2]


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cluster", "reach")])
def test_a_benchmark_runs_and_prints_ratios(name: str) -> None:
    """Without those that need a real cluster (tests/cluster/test_bench.py has one of them)."""
    argv = [sys.executable, "-m", "bench", "--quick", name]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    tables = [line for line in done.stdout.splitlines() if " what " in line]
    assert tables
    assert all(" ratio " in line for line in tables)
    assert done.stdout.count(" 1.00 ") >= len(tables)
    assert done.stdout.count("felix-py") + done.stdout.count("engine") >= len(tables)


def test_help_says_what_each_one_measures() -> None:
    argv = [sys.executable, "-m", "bench", "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(f"\n{name}: " in done.stdout for name in NAMES)


def test_an_unknown_name_is_a_clear_error() -> None:
    argv = [sys.executable, "-m", "bench", "nonsense"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no benchmark nonsense; there are: policy" in done.stderr
