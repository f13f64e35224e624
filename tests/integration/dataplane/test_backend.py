"""Finding the backend by what the host's kernel holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from felix_py.dataplane import backend as backends
from felix_py.dataplane.backend import ToolError, command, find_backend
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
