"""The benchmark on a cluster still runs, and the agent's memory is within its aim there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cluster.machine import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.heavy, pytest.mark.timeout(600)]


def test_benchmark_runs() -> None:
    argv = [sys.executable, "-m", "bench", "--quick", "cluster"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    assert len(re.findall(r"^\S* *agent ", done.stdout, re.MULTILINE)) >= 3
    assert "aim: under 0.5 %" in done.stdout
