"""Finding the backend by what the host's kernel holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.dataplane import backend as backends
from felix_py.dataplane.backend import ToolError, command, find_backend, save
from felix_py.records import Backend
from policy.model import Family
from tests.support.isolate import run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


def test_an_empty_host_is_nft_and_stays_empty() -> None:
    assert find_backend() is Backend.NFT
    assert Path("/proc/thread-self/net/ip_tables_names").read_text() == ""


@pytest.mark.parametrize("tool", ["iptables", "ip6tables"])
def test_the_backend_with_more_rules(tool: str) -> None:
    for _ in range(3):
        run(f"{tool}-legacy", "-A", "INPUT", "-j", "ACCEPT")
    run(f"{tool}-nft", "-A", "INPUT", "-j", "ACCEPT")
    assert find_backend() is Backend.LEGACY
    for _ in range(3):
        run(f"{tool}-nft", "-A", "INPUT", "-j", "ACCEPT")
    assert find_backend() is Backend.NFT


@pytest.mark.parametrize("chain", ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"])
@pytest.mark.parametrize("backend", list(Backend))
def test_what_the_kubelet_left_counts_more(chain: str, backend: Backend) -> None:
    other = Backend.NFT if backend is Backend.LEGACY else Backend.LEGACY
    for _ in range(5):
        run(f"iptables-{other}", "-A", "INPUT", "-j", "ACCEPT")
    run(f"iptables-{backend}", "-t", "mangle", "-N", chain)
    assert find_backend() is backend


def test_legacy_tables_are_not_made_by_looking() -> None:
    run("iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
    find_backend()
    assert Path("/proc/thread-self/net/ip_tables_names").read_text() == "filter\n"


@pytest.mark.parametrize("backend", list(Backend))
def test_override(backend: Backend) -> None:
    assert find_backend(backend) is backend


def test_missing_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "_SEARCH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    command.cache_clear()
    try:
        with pytest.raises(ToolError, match="ip6tables-legacy-save is not installed"):
            command(Family.V6, Backend.LEGACY, "save")
        with pytest.raises(ToolError, match="iptables-nft-restore is not installed"):
            find_backend(Backend.NFT)
    finally:
        command.cache_clear()


@pytest.fixture
def odd_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Have a shell script take iptables-nft-save's place; ``REAL`` in it is the real one. It counts its runs."""

    def install(script: str) -> Path:
        real = command(Family.V4, Backend.NFT, "save")
        tool, runs = tmp_path / "iptables-nft-save", tmp_path / "runs"
        tool.write_text(f"#!/bin/sh\necho run >> {runs}\n" + script.replace("REAL", real))
        tool.chmod(0o755)
        monkeypatch.setattr(backends, "command", lambda *_: str(tool))
        return runs

    return install


def test_what_was_printed_while_others_wrote_is_not_believed_at_once(odd_tool: Callable[[str], Path]) -> None:
    """As seen under load: exit status 0, but chains are printed several times over. The next try is quiet."""
    run("iptables-nft", "-N", "FELIX-A")
    run("iptables-nft", "-A", "FELIX-A", "-j", "DROP")
    runs = odd_tool("REAL; test -e $0.again && exit; touch $0.again; iptables-nft -N THEIRS; REAL | grep ^-A")
    assert save(Family.V4, Backend.NFT).count("-A FELIX-A -j DROP") == 1
    assert len(runs.read_text().splitlines()) == 2


def test_rules_that_others_never_stop_writing_are_believed_when_ours_are_the_same_twice(
    odd_tool: Callable[[str], Path],
) -> None:
    run("iptables-nft", "-N", "FELIX-A")
    run("iptables-nft", "-A", "FELIX-A", "-j", "DROP")
    runs = odd_tool("REAL; iptables-nft -N THEIRS || iptables-nft -X THEIRS")
    assert "-A FELIX-A -j DROP" in save(Family.V4, Backend.NFT)
    assert len(runs.read_text().splitlines()) == 2


def test_rules_that_never_are_the_same_twice_are_not_believed(odd_tool: Callable[[str], Path]) -> None:
    run("iptables-nft", "-N", "FELIX-A")
    odd_tool("iptables-nft -A FELIX-A -j DROP; REAL; iptables-nft -A FELIX-A -j DROP")
    with pytest.raises(ToolError, match=r"keep changing|timed out"):
        save(Family.V4, Backend.NFT, 0.3)


@pytest.mark.parametrize(("table", "matters"), [("filter", True), ("kube-proxy", False)])
def test_a_table_that_the_tool_does_not_understand(
    odd_tool: Callable[[str], Path], table: str, matters: bool
) -> None:
    """Taking it for empty would mean to write all of it again and again."""
    odd_tool(f"echo \"# Table \\`{table}' is incompatible, use 'nft' tool.\"; REAL")
    if matters:
        with pytest.raises(ToolError, match="Table `filter' is incompatible, use 'nft' tool"):
            save(Family.V4, Backend.NFT)
    else:
        save(Family.V4, Backend.NFT)
