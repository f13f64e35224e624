"""``/readyz`` says ok only while what policy rests on is in the kernel, also when the kernel refuses it later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import POLICY, PolicedNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


def peers_of_db(node: PolicedNode) -> dict[Family, str]:
    """The sets of the policy's peers: of each family the one that holds api's address and no other."""
    held: dict[str, list[str]] = {}
    for line in run("ipset", "save").splitlines():
        command, name, member, *_ = line.split()
        held.setdefault(name, []).extend([member] if command == "add" else [])
    found = {
        family: [name for name, members in held.items() if members == [node.addresses["api"][family]]]
        for family in Family
    }
    assert all(len(names) == 1 for names in found.values()), held
    return {family: names[0] for family, names in found.items()}


def refusing(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a tool before the real one; it refuses while the file that is returned exists."""
    tool, refuses = folder / "tools" / name, folder / "refuses"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ -e {refuses} ] && exit 1\nexec {shutil.which(name)} "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return refuses


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_what_cannot_be_written(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    refuses = refusing(f"iptables-{backend}-restore", tmp_path, monkeypatch)
    with PolicedNode(tmp_path, backend, make_netns) as node:
        node.set_up("--refresh-interval", "3600")
        refuses.touch()
        node.allow("web", {"app": "web"}, {"app": "api"})
        node.until_unready("policy is not wholly in force: chain ")
        assert node.status()["unready"] == node.ask("/readyz")[1].strip()
        # Who has nothing to do with it is connected as ever.
        node.add_pod("other", app="other")
        refuses.unlink()
        node.ready()
        assert {pair for pair in node.reached() if "other" not in pair} == POLICY - {("db", "web")}


def test_a_set_that_somebody_has_made_too_small(tmp_path: Path, make_netns: MakeNetns) -> None:
    """Nothing tells of that but the refusal of the next member, which makes it whole, and at once."""
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.set_up("--refresh-interval", "3600")
        for family, name in peers_of_db(node).items():
            inet = "inet" if family is Family.V4 else "inet6"
            run("ipset", "create", "small", "hash:ip", "family", inet, "maxelem", "1")
            run("ipset", "add", "small", node.addresses["api"][family])
            run("ipset", "swap", "small", name)
            run("ipset", "destroy", "small")
        node.relabel("web", app="api")
        eventually(lambda: node.reached() == POLICY | {("web", "db")}, 30)
        node.ready()
        assert "the set is full" in node.log


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_rules_that_cannot_be_read_back(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, backend: Backend
) -> None:
    """Also where all else can be, and is, all the time."""
    name = f"iptables-{backend}-save"
    refuses = refusing(name, tmp_path, monkeypatch)
    with PolicedNode(tmp_path, backend, make_netns) as node:
        node.set_up("--refresh-interval", "3600")
        refuses.touch()
        run("iptables-" + backend, "-N", "OTHERS")
        run("iptables-" + backend, "-A", "FORWARD", "-j", "OTHERS")
        node.until_unready(f"the kernel cannot be read back: {name}: exit status 1")
        run("ip", "link", "set", "up0", "down")  # a look at the routes
        run("ip", "link", "set", "up0", "up")
        node.add_pod("other", app="other")
        node.until_unready(f"the kernel cannot be read back: {name}: exit status 1")
        refuses.unlink()
        node.ready()
