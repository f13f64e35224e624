"""``felix-py bgp … --node``: what is run in which pod, and what is said where that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KUBECTL = """#!/bin/sh
# A cluster with one pod of felix-py, on node n1.
case "$*" in
  *"get pods -l app.kubernetes.io/name=felix-py --field-selector spec.nodeName=n1 -o name")
    echo pod/felix-py-abcde;;
  *"get pods"*n2*) ;;
  *"get pods"*) echo 'pods is forbidden' >&2; exit 1;;
  *" exec "*) printf '%s\\n' "$*"; exit 7;;
esac
"""


def felix_py(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from felix_py.cli import main; sys.argv[0] = 'felix-py'; main()"
    command = [sys.executable, "-c", program, "bgp", *words]
    return subprocess.run(
        command, env={**os.environ, "PATH": str(path)}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    program = tmp_path / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["peers", "--json"],
        ["routes"],
        ["announced"],
        ["explain", "--json", "--", "10.244.0.0/24"],
        ["trace", "--", "10.0.0.1"],
    ],
)
def test_it_becomes_the_same_command_in_the_agents_pod(path: Path, words: list[str]) -> None:
    done = felix_py(path, words[0], "--node", "n1", "-n", "net", *words[1:])
    wanted = f"-n net exec pod/felix-py-abcde -c agent -- felix-py bgp {' '.join(words)}"
    assert (done.stdout.strip(), done.returncode) == (wanted, 7), done.stderr


def test_what_cannot_be_is_said(path: Path) -> None:
    said = felix_py(path, "peers", "--node", "n2")
    assert (said.returncode, said.stderr) == (
        1,
        "felix-py bgp: no pod of felix-py is on node n2 in namespace kube-system\n",
    )
    said = felix_py(path, "peers", "--node", "n3")
    assert (said.returncode, said.stderr) == (1, "felix-py bgp: kubectl: pods is forbidden\n")
    (path / "kubectl").unlink()
    said = felix_py(path, "peers", "--node", "n1")
    assert (said.returncode, said.stderr) == (1, "felix-py bgp: --node needs kubectl, which is not here\n")
