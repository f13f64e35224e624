"""Agent and sidecar as two users that share a group, as in a pod with ``fsGroup``: who can read and connect."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bgp.launch import raise_bind_service
from felix_py.files import replace_private

pytestmark = pytest.mark.root

GROUP = OTHER = 65532
ROOT = Path(__file__).parents[2]
WRITE = """
import sys
from pathlib import Path
from felix_py.files import replace_private
replace_private(Path(sys.argv[1]), "password secret;")
"""


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def test_group_of_a_shared_folder_reads(tmp_path: Path) -> None:
    """Without any capability: the agent's container has neither CHOWN nor DAC_OVERRIDE."""
    folder = tmp_path / "bgp"
    folder.mkdir()
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2777)
    argv = ["setpriv", f"--groups={GROUP}", "--bounding-set=-all", "--inh-caps=-all"]
    subprocess.run([*argv, sys.executable, "-c", WRITE, folder / "exabgp.conf"], cwd=ROOT, check=True)
    assert owner_and_mode(folder / "exabgp.conf") == (0, GROUP, 0o640)


def test_owner_of_a_folder_reads_alone(tmp_path: Path) -> None:
    folder = tmp_path / "bgp"
    folder.mkdir()
    os.chown(folder, OTHER, GROUP)
    replace_private(folder / "exabgp.conf", "password secret;")
    assert owner_and_mode(folder / "exabgp.conf") == (OTHER, GROUP, 0o600)


@pytest.mark.parametrize("shared", [True, False])
def test_socket_is_the_group_s_only_in_a_shared_folder(tmp_path: Path, shared: bool) -> None:
    tmp_path.chmod(0o2770 if shared else 0o700)
    socket = tmp_path / "bridge.sock"
    argv = [sys.executable, "-I", "-S", str(ROOT / "bgp/bridge.py"), str(socket)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bridge:
        try:
            while not socket.exists():
                assert bridge.poll() is None
            assert owner_and_mode(socket)[2] == (0o660 if shared else 0o600)
        finally:
            bridge.communicate(timeout=10)


def test_only_a_permitted_capability_is_raised() -> None:
    """root has it; who has no right does without, and ExaBGP says what it cannot do."""
    assert raise_bind_service()
    code = "from bgp.launch import raise_bind_service; print(raise_bind_service())"
    argv = ["setpriv", f"--reuid={OTHER}", "--clear-groups", "--bounding-set=-all", sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
