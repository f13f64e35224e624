"""The agent's settings: what is refused, and with which words."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from felix_py import log
from felix_py.agent import main as agent
from felix_py.cli.main import app
from felix_py.config import AgentConfig, ConfigError
from felix_py.desired.marks import Marks
from felix_py.observe.listener import parse_address
from policy.model import Direction


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"node_name": ""}, "--node-name is empty"),
        ({"cluster_cidrs": ("10.0.0.0/33",)}, "--cluster-cidr 10.0.0.0/33"),
        ({"cluster_cidrs": ("10.0.0.1/8",)}, "--cluster-cidr 10.0.0.1/8"),
        ({"cluster_cidrs": ("0.0.0.0/0",)}, "everything cannot be the cluster's own"),
        ({"service_cidrs": ("fe80::%; x/64",)}, "--service-cidr"),
        ({"mtu": 60}, "--mtu 60"),
        ({"chained_plugins": ("../sh",)}, "--chained-plugin"),
    ],
)
def test_unusable_settings_are_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AgentConfig(**{"node_name": "n1", **settings})  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["9099", "host:", ":9099", "127.0.0.1:http", "127.0.0.1:70000"])
def test_a_health_address_needs_address_and_port(text: str) -> None:
    with pytest.raises(ConfigError, match="must be ADDRESS:PORT"):
        parse_address(text)


def test_health_addresses_of_both_families() -> None:
    assert parse_address("127.0.0.1:9099") == ("127.0.0.1", 9099)
    assert parse_address("[::1]:9099") == ("::1", 9099)


@pytest.mark.parametrize(
    ("mask", "words"),
    [(0, "32-bit"), (1 << 32, "32-bit"), (0xFFFFF000, "kube-proxy"), (0x0FF00FF0, "adjacent")],
)
def test_a_mark_mask_needs_room_and_keeps_off_kube_proxys_bits(mask: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Marks.from_mask(mask)


def test_a_mark_mask_is_divided_without_overlap() -> None:
    marks = Marks.from_mask(0xFFFF_0000)
    parts = [marks.accept, marks.passed, *(marks.class_mask(direction) for direction in Direction)]
    assert sum(parts) == marks.all == 0xFFFF_0000


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        ([], {}, True),
        (["--no-revoke-established"], {}, False),
        ([], {"FELIX_PY_REVOKE_ESTABLISHED": "false"}, False),
        (["--revoke-established"], {"FELIX_PY_REVOKE_ESTABLISHED": "0"}, True),
    ],
)
def test_revocation_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str], expected: bool
) -> None:
    seen: list[AgentConfig] = []

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)
    monkeypatch.setattr(agent, "main", lambda config, _given: seen.append(config))
    done = CliRunner().invoke(app, ["agent", *words], env=environment)
    assert done.exit_code == 0, done.output
    assert seen[0].revoke_established is expected


def test_peers_of_the_pod_are_found_without_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The DaemonSet mounts a ConfigMap that need not exist; a file that somebody names must."""
    # `felix_py.cli.agent` is the command's module; as an attribute the package may have the command itself.
    agent_command = importlib.import_module("felix_py.cli.agent")
    file = tmp_path / "bgp.yaml"
    monkeypatch.setattr(agent_command, "BGP_CONFIG", file)
    assert agent_command._config({}).bgp_config is None
    file.touch()
    assert agent_command._config({}).bgp_config == file
    assert agent_command._config({"bgp_config": Path("/elsewhere")}).bgp_config == Path("/elsewhere")
