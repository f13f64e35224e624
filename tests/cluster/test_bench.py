"""The benchmarks on a cluster still run, and the agent's memory is within its aim there."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cluster.machine import CHECKOUT

pytestmark = [pytest.mark.root, pytest.mark.heavy, pytest.mark.timeout(900)]


def bench(name: str) -> str:
    argv = [sys.executable, "-m", "bench", "--quick", name]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout


def test_an_idle_node() -> None:
    told = bench("cluster")
    assert len(re.findall(r"^\S* *agent ", told, re.MULTILINE)) >= 3
    assert "aim: under 0.5 %" in told


def test_a_new_pod_of_another_node() -> None:
    assert len(re.findall(r"--announce-pod-ips", bench("reach"))) == 2
