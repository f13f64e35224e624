"""The router's configuration, read by BIRD itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.bird import bird_config
from lab.topology import nodes
from policy.model import Family

needs_bird = pytest.mark.skipif(shutil.which("bird") is None, reason="bird is not installed")


@needs_bird
@pytest.mark.parametrize("families", [(Family.V4,), (Family.V6,), (Family.V4, Family.V6)])
@pytest.mark.parametrize("count", [1, 2, 100])
def test_bird_accepts_it(tmp_path: Path, families: tuple[Family, ...], count: int) -> None:
    path = tmp_path / "bird.conf"
    path.write_text(bird_config(nodes(count, families)))
    done = subprocess.run(["bird", "-p", "-c", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_session_for_each_node_and_family() -> None:
    text = bird_config(nodes(3, (Family.V4, Family.V6)))
    sessions = [line.split()[2] for line in text.splitlines() if line.startswith("protocol bgp")]
    assert sessions == [f"node{i}_ipv{v}" for v in (4, 6) for i in (1, 2, 3)]
    assert text.count("graceful restart on") == 1
