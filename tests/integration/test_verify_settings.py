"""``felix-py verify`` while no agent answers: it compares with the settings with which one would start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.records import Backend
from tests.support.fakeapi import CONFIGURATIONS
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import PolicedNode

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


def test_settings_of_the_clusters_objects_count(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        spec = {"natOutgoing": False, "defaultEndpointToHostAction": "Drop", "dropInvalid": False}
        node.api.install(CONFIGURATIONS)
        node.api.put(CONFIGURATIONS, {"metadata": {"name": "default", "uid": "c"}, "spec": spec})
        node.prepare()

        def verify(*words: str) -> tuple[int, str]:
            argv = [FELIX_PY, "verify", "--kubeconfig", str(node.kubeconfig), "--node-name", "n1", "-o", "json"]
            argv += ["--state-dir", str(tmp_path / "state"), "--agent-socket", str(tmp_path / "run/agent.sock")]
            done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False, timeout=60)
            assert done.stdout, done.stderr
            return done.returncode, done.stdout

        code, said = verify()
        assert (code, json.loads(said)["differences"]) == (0, []), said
        # What the agent was not started with differs, also where it is said on the command line.
        assert verify("--drop-invalid")[0] == 1
        spec["natOutgoing"] = True
        node.api.put(CONFIGURATIONS, {"metadata": {"name": "default", "uid": "c"}, "spec": spec})
        assert verify()[0] == 1
