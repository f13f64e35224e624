"""What an agent starts with, whatever API server, objects and disk say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felix_py.agent.last_good import LastGood
from felix_py.agent.starting import Start, read_in_time, settle, unusable_here
from felix_py.config import AgentConfig, ConfigError
from felix_py.datastore.client import ApiError, Unreachable
from felix_py.records import Backend, ConfigurationRecord
from lab.apiserver.kubeconfig import write_kubeconfig
from policy.model import Family
from tests.support import faults
from tests.support.configurations import fine, record
from tests.support.fakeapi import CONFIGURATIONS, FakeApi

ABSENT = ApiError(404, "NotFound", "no such kind")


def started(folder: Path, answer: list[ConfigurationRecord] | Exception, *given: str, **base: Any) -> Start:
    def read(_config: AgentConfig) -> list[ConfigurationRecord]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return settle(AgentConfig(node_name="n1", state_dir=folder, **base), given, read, fine)


def saved(folder: Path, **values: Any) -> None:
    LastGood(folder).write(values)


def test_the_objects_count(tmp_path: Path) -> None:
    saved(tmp_path, mtu=1300, nat_outgoing=False)
    found = started(tmp_path, [record("default", mtu=1400)])
    assert (found.config.mtu, found.config.nat_outgoing) == (1400, True)
    assert found.known
    assert found.certain
    assert found.words == ""


def test_what_is_given_counts_before_them(tmp_path: Path) -> None:
    found = started(tmp_path, [record("default", mtu=1400, dropInvalid=False)], "mtu", mtu=1280)
    assert (found.config.mtu, found.config.drop_invalid) == (1280, False)


@pytest.mark.parametrize(
    "error", [Unreachable("refused"), ApiError(403, "Forbidden", "no"), ConfigError("x"), ABSENT]
)
def test_else_the_last_good_copy_does(tmp_path: Path, error: Exception) -> None:
    """404, too: a server that is just starting says that."""
    saved(tmp_path, mtu=1300, endpoint_to_host="drop")
    found = started(tmp_path, error)
    assert (found.config.mtu, found.config.endpoint_to_host) == (1300, "drop")
    assert not found.known
    assert found.certain
    assert "starting with the last good copy" in found.words


def test_else_nothing_is_certain(tmp_path: Path) -> None:
    found = started(tmp_path, Unreachable("refused"))
    assert found.config == AgentConfig(node_name="n1", state_dir=tmp_path)
    assert not found.certain
    assert "the settings of command line and environment alone: refused" in found.words


def damage(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"1300", b"1301"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage, "its check sum is wrong"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(b"[" * 100_000), "is damaged"),
        (lambda path: path.write_bytes(b"\xff\x00"), "is damaged"),
        (lambda path: path.write_bytes(b'{"version": 2, "sha256": "", "fields": {}}'), "another version"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    ],
)
def test_a_damaged_copy_is_ignored_and_said(tmp_path: Path, harm: Callable[[Path], object], words: str) -> None:
    saved(tmp_path, mtu=1300)
    harm(LastGood(tmp_path).path)
    found = started(tmp_path, Unreachable("refused"))
    assert found.config.mtu == 0
    assert not found.certain
    assert words in found.words
    # What the objects say is known all the same.
    assert started(tmp_path, [record("default", mtu=1400)]).config.mtu == 1400


def test_a_wrong_value_leaves_the_copys(tmp_path: Path) -> None:
    saved(tmp_path, mtu=1300, deny_log=False)
    found = started(tmp_path, [record("default", mtu=1)])
    assert (found.config.mtu, found.config.deny_log) == (1300, True)


def test_a_copy_whose_value_this_node_can_use_no_longer_does_not_count(tmp_path: Path) -> None:
    saved(tmp_path, backend=Backend.NFT, mtu=1300)

    def away(_config: AgentConfig) -> list[ConfigurationRecord]:
        raise Unreachable("refused")

    config = AgentConfig(node_name="n1", state_dir=tmp_path)
    found = settle(config, (), away, lambda name, _value: "not installed" if name == "backend" else "")
    assert (found.config.backend, found.config.mtu) == (None, 1300)


def test_a_copy_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, mtu=1300)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        saved(tmp_path, mtu=1400)
    assert LastGood(tmp_path).read().values == {"mtu": 1300}
    assert [path.name for path in tmp_path.iterdir()] == ["configuration.json"]


# --- reading ------------------------------------------------------------------------------------------


def config(folder: Path, api: FakeApi) -> AgentConfig:
    write_kubeconfig(folder / "kubeconfig", api.url)
    return AgentConfig(node_name="n1", kubeconfig=folder / "kubeconfig")


def test_objects_are_read(tmp_path: Path) -> None:
    with FakeApi() as api:
        api.install(CONFIGURATIONS)
        api.put(CONFIGURATIONS, {"metadata": {"name": "default", "uid": "u"}, "spec": {"mtu": 1400}})
        api.put(CONFIGURATIONS, {"metadata": {"name": "node.n1", "uid": "v"}, "spec": "rubbish"})
        found = read_in_time(config(tmp_path, api))
    assert found == [
        ConfigurationRecord("default", "u", {"mtu": 1400}),
        ConfigurationRecord("node.n1", "v", {}, "spec: must be an object"),
    ]


def test_without_the_kind_it_is_not_known(tmp_path: Path) -> None:
    with FakeApi() as api, pytest.raises(ApiError, match="404"):
        read_in_time(config(tmp_path, api))


def test_a_server_that_never_answers_takes_three_seconds(tmp_path: Path) -> None:
    with FakeApi() as api:
        api.fault("list", faults.hang)
        with pytest.raises(Unreachable, match="no answer in 3 seconds"):
            read_in_time(config(tmp_path, api))


def test_one_that_answers_nonsense(tmp_path: Path) -> None:
    with FakeApi() as api:
        api.install(CONFIGURATIONS)
        api.fault("list", lambda exchange: exchange.send(200, {"hello": "world"}) or True)
        with pytest.raises(Unreachable):
            read_in_time(config(tmp_path, api))


def test_no_access_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_in_time(AgentConfig(node_name="n1", kubeconfig=tmp_path / "none"))


# --- what only a node can judge -----------------------------------------------------------------------


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from felix_py.dataplane import backend

    assert unusable_here("backend", Backend.NFT) == ""
    assert unusable_here("backend", None) == ""
    backend.command.cache_clear()
    monkeypatch.setattr(backend, "_SEARCH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    try:
        assert "iptables-nft-restore is not installed" in unusable_here("backend", Backend.NFT)
    finally:
        backend.command.cache_clear()


def test_a_family_that_the_kernel_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from felix_py.dataplane import sysctl

    monkeypatch.setattr(sysctl, "available_families", lambda: (Family.V4,))
    assert "this kernel has no IPv6" in unusable_here("ip_families", (Family.V4, Family.V6))
    assert unusable_here("ip_families", (Family.V4,)) == ""
