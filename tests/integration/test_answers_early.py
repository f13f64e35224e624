"""What commands answer while an agent does not know the cluster: nothing that looks as if all were well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from felix_py.cli.main import app
from felix_py.records import Backend
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import PolicedNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


def test_before_the_cluster_is_known(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> None:
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()

        def ask(*words: str) -> tuple[int, str, str]:
            socket = ("--agent-socket", str(node.folder / "run" / "agent.sock"))
            done = CliRunner().invoke(app, [*words, *socket])
            return done.exit_code, done.stdout, done.stderr

        node.start_alone()
        code, out, said = ask("ipam", "check")
        assert (code, out) == (1, "")
        assert "has not told yet which pods are here, so leases were not compared" in said
        code, out, _ = ask("ipam", "check", "-o", "json")
        assert (code, json.loads(out)["differences"], len(json.loads(out)["notes"])) == (1, [], 2)
        code, out, said = ask("denies")
        assert (code, out) == (1, "")
        assert "denied packets are not read at present: the agent has just started" in said
        code, out, _ = ask("status")
        assert (code, "n1: fine" in out) == (1, False)
        node.api.listen()
        node.ready()
        eventually(lambda: ask("ipam", "check")[0] == 0, 30)
        assert ask("ipam", "check")[1].startswith("all is well: 3 leases")
