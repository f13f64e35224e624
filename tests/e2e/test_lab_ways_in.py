"""``felix-py lab exec`` and ``logs``, and a second lab beside one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.e2e.test_lab_command import felix
from tests.support.lab import LabUnderTest

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def test_ways_in(plain_lab: LabUnderTest) -> None:
    """exec and logs reach what they name, and say what there is when it does not exist."""
    root = plain_lab.lab.state.root
    name = plain_lab.lab.name
    address = plain_lab.addresses("shop", "web-1")
    shown = felix("exec", "--name", name, "shop/web-1", "--", "ip", "address", folder=root)
    assert all(a in shown.stdout for a in address.values())
    shown = felix(
        "exec", "--name", name, "node1", "--", "cat", "/etc/cni/net.d/10-felix-py.conflist", folder=root
    )
    assert json.loads(shown.stdout)["plugins"][0]["type"] == "felix-py-cni"
    assert felix("logs", "--name", name, "node1", folder=root).stdout
    assert "shop/web-1" in felix("logs", "--name", name, "node1", "--component", "kubelet", folder=root).stdout
    relative = os.path.relpath(__file__)
    assert felix("exec", "--name", name, "node1", "--", "cat", relative, folder=root).stdout
    missing = felix("exec", "--name", name, "node9", "--", "true", folder=root, check=False)
    assert "there are tor, node1, node2" in missing.stderr
    failed = felix("exec", "--name", name, "tor", "--", "sh", "-c", "exit 7", folder=root, check=False)
    assert failed.returncode == 7


def test_exec_from_a_folder_that_is_gone(
    plain_lab: LabUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    shown = felix("exec", "--name", plain_lab.lab.name, "node1", "--", "pwd", folder=plain_lab.lab.state.root)
    assert shown.stdout == "/\n"


def test_two_labs_side_by_side(plain_lab: LabUnderTest, folder: Path) -> None:
    felix("up", "--name", "eight", "--nodes", "1", "--no-pods", folder=folder)
    nodes = felix("kubectl", "--name", "eight", "--", "get", "nodes", "-o", "name", folder=folder).stdout
    assert nodes.split() == ["node/node1"]
    felix("down", "--name", "eight", folder=folder)
    plain_lab.settle()
