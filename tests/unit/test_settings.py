"""The table of settings: every form of a setting means the same value."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from felix_py import log
from felix_py.agent import main as agent_main
from felix_py.cli.main import app
from felix_py.config import (
    SETTINGS,
    AgentConfig,
    ConfigError,
    EndpointToHost,
    RouteSource,
    as_json,
    environment,
    value_of,
)
from felix_py.log import LogFormat, LogLevel
from felix_py.records import Backend
from policy.model import Family

OTHERS = AgentConfig(
    node_name="n1",
    kubeconfig=Path("/a b/kubeconfig"),
    namespace="network",
    state_dir=Path("/other/state"),
    run_dir=Path("/other/run"),
    cni_conf_dir=Path("/other/net.d"),
    cni_bin_dir=Path("/other/bin"),
    chained_plugins=("bandwidth", "portmap"),
    cluster_cidrs=("10.0.0.0/8", "fd00::/16"),
    service_cidrs=("10.96.0.0/16",),
    backend=Backend.NFT,
    ip_families=(Family.V6,),
    bgp_config=Path("/other/bgp.yaml"),
    bgp_foreign_annotations=True,
    route_source=RouteSource.KUBERNETES,
    mark_mask=0xFFFF0000,
    nat_outgoing=False,
    endpoint_to_host=EndpointToHost.DROP,
    drop_invalid=False,
    revoke_established=False,
    announce_pod_ips=True,
    connect_containers=True,
    mtu=1400,
    refresh_interval=1.5,
    cni_timeout=0.25,
    address_cooldown=300,
    strict_affinity=False,
    discovery_interval=2,
    health_address="[::1]:9098",
    socket_group="users",
    deny_log=False,
    deny_log_group=7,
    deny_log_rate=1000,
    deny_log_lines=False,
    log_level=LogLevel.DEBUG,
    log_format=LogFormat.JSON,
)
"""Every setting has another value than its default, but the mask, of which there is one only."""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AgentConfig]:
    """``felix-py agent``: the configuration that the agent gets."""
    seen: list[AgentConfig] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)
    monkeypatch.setattr(agent_main, "main", lambda config, _given: seen.append(config))
    for it in SETTINGS.values():
        for name in it.environment:
            monkeypatch.delenv(name, raising=False)

    def start(*words: str, **env: str) -> AgentConfig:
        done = CliRunner().invoke(app, ["agent", *words], env=env)
        assert done.exit_code == 0, done.output
        return seen.pop()

    return start


def test_every_setting_has_another_value_in_this_test() -> None:
    same = [name for name, it in SETTINGS.items() if getattr(OTHERS, name) == it.default]
    assert same == ["mark_mask"]


def test_environment_says_all_that_the_configuration_holds(start: Callable[..., AgentConfig]) -> None:
    values = {name: getattr(OTHERS, name) for name in SETTINGS}
    assert start(**environment(**values)) == OTHERS


def test_command_line_says_all_that_the_configuration_holds(start: Callable[..., AgentConfig]) -> None:
    words = []
    for name, it in SETTINGS.items():
        value = getattr(OTHERS, name)
        if isinstance(value, bool):
            words.append(it.option if value else f"--no-{it.option[2:]}")
        else:
            given = [(one,) for one in value] if it.many else [value]
            words += [f"{it.option}={it.text(one)}" for one in given]
    assert start(*words) == OTHERS


def test_without_words_it_is_the_defaults(start: Callable[..., AgentConfig]) -> None:
    found = start("--node-name=n1", "--cni-conf-dir=/etc/cni/net.d", "--cni-bin-dir=/opt/cni/bin")
    assert found == AgentConfig(node_name="n1")


def test_an_empty_variable_is_none(start: Callable[..., AgentConfig]) -> None:
    empty = {it.environment[0]: "" for it in SETTINGS.values() if it.name not in ("chained_plugins",)}
    assert dataclasses.replace(start(**empty), node_name="n1") == dataclasses.replace(start(), node_name="n1")


def test_what_is_given_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given counts before the cluster's settings, also if it is the built-in value."""
    seen: list[frozenset[str]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)
    monkeypatch.setattr(agent_main, "main", lambda _config, given: seen.append(given))
    env = {name: "" for it in SETTINGS.values() for name in it.environment if it.name != "chained_plugins"}
    env |= {
        "FELIX_PY_DENY_LOG_RATE": "10",
        "FELIX_PY_NAT_OUTGOING": "false",
        "FELIX_PY_CLUSTER_CIDRS": "10.0.0.0/8",
    }
    words = ["agent", "--mtu=0", "--no-deny-log", "--service-cidr=none"]
    assert CliRunner().invoke(app, words, env=env).exit_code == 0
    assert seen == [{"deny_log_rate", "nat_outgoing", "cluster_cidrs", "mtu", "deny_log", "service_cidrs"}]


def test_none_is_an_empty_list(start: Callable[..., AgentConfig]) -> None:
    assert start("--chained-plugin=none", "--cluster-cidr=none").chained_plugins == ()


def test_defaults_can_be_used() -> None:
    for it in SETTINGS.values():
        if it.name != "node_name":
            it.validate(it.default)


def test_status_shows_all_settings() -> None:
    shown = json.loads(json.dumps(as_json(OTHERS)))
    assert shown.keys() == {it.json_name for it in SETTINGS.values()}
    assert shown["clusterCidrs"] == ["10.0.0.0/8", "fd00::/16"]
    assert (shown["markMask"], shown["backend"], shown["mtu"], shown["natOutgoing"]) == (
        "0xffff0000",
        "nft",
        1400,
        False,
    )
    assert json.loads(json.dumps(as_json(AgentConfig(node_name="n1"))))["kubeconfig"] is None


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("refresh_interval", 0.5, "--refresh-interval 0.5: must be 1 at least"),
        ("deny_log_group", 65536, "--deny-log-group 65536: must be 65535 at most"),
        ("chained_plugins", ("portmap", "../sh"), "--chained-plugin ../sh: the name of a program"),
        ("service_cidrs", ("10.0.0.0/8", "::/0"), "--service-cidr ::/0: everything"),
    ],
)
def test_what_is_out_of_range_is_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AgentConfig(**{"node_name": "n1", name: value})  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("backend", "ebpf", "--backend ebpf: must be auto, legacy or nft"),
        ("ip_families", "v6", "--ip-families v6: must be ipv4, ipv6 or ipv4,ipv6"),
        ("mark_mask", "many", "--mark-mask many: not a number such as 0xffff0000"),
    ],
)
def test_text_that_is_no_value_is_named(name: str, given: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        value_of(name, given)
    assert str(caught.value) == words


@pytest.mark.parametrize("given", ["ipv6,ipv4", "IPv4 IPv6", "ipv4, ipv6, ipv4"])
def test_families_in_any_order(given: str) -> None:
    assert value_of("ip_families", given) == (Family.V4, Family.V6)
