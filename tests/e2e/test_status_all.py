"""``felix-py status --all`` of a cluster whose agents write what it reads."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from lab.topology import TOR
from tests.e2e.test_lab_command import FELIX_PY
from tests.support.lab import LabUnderTest
from tests.support.promtool import MONITORING
from tests.support.waiting import eventually

DEFINITION = MONITORING.parent / "crds" / "felixpy.io_nodenetworkstatuses.yaml"

pytestmark = [
    pytest.mark.root,
    pytest.mark.e2e,
    pytest.mark.skipif(not DEFINITION.exists(), reason="agents write no NodeNetworkStatus in this tree"),
]


def status(lab: LabUnderTest) -> tuple[int, dict[str, Any]]:
    kubeconfig = f"--kubeconfig={lab.lab.state.kubeconfig}"
    done = subprocess.run(
        [FELIX_PY, "status", "--all", "--json", kubeconfig],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


def test_all_nodes_are_fine_until_a_session_is_down(plain_lab: LabUnderTest) -> None:
    lab = plain_lab
    eventually(lambda: status(lab)[0] == 0, 90)
    _, found = status(lab)
    assert found["problems"] == []
    assert [one["node"] for one in found["nodes"]] == sorted(lab.node_names)
    assert {one["facts"]["peers"] for one in found["nodes"]} == {"1/1"}
    assert {one["facts"]["backend"] for one in found["nodes"]} == {"nft"}
    one = sorted(lab.node_names)[0]
    lab.sh(TOR, "birdc", "disable", f"{one}_ipv4")
    try:
        eventually(lambda: status(lab)[0] == 1, 90)
        code, found = status(lab)
        first = found["nodes"][0]
        assert (code, first["node"], first["facts"]["peers"]) == (1, one, "0/1")
        assert first["problems"][0]["what"].startswith("BGP peers are down: ")
    finally:
        lab.sh(TOR, "birdc", "enable", f"{one}_ipv4")
    eventually(lambda: status(lab)[0] == 0, 90)
