"""The API server's objects outlive it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lab.apiserver.errors import ApiError
from lab.apiserver.instance import Instance
from lab.apiserver.journal import Journal
from lab.apiserver.kinds import GroupResource, Obj
from lab.apiserver.rest import Target, WriteOptions
from lab.apiserver.store import Store

PODS = GroupResource("", "pods")
OPTIONS = WriteOptions(manager="test")


def pod(name: str, **labels: str) -> Obj:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "a", "name": name, "labels": labels}}


def store(path: Path, start: int = 1) -> Store:
    return Store(start, 100, Journal(path))


def content(one: Store) -> list[tuple[str, dict[str, str], int]]:
    return [(s.key[1], s.obj["metadata"]["labels"], s.version) for s in one.list(PODS)]


def test_everything_comes_back_with_its_versions(tmp_path: Path) -> None:
    first = store(tmp_path / "log")
    for name in ("x", "y", "z"):
        first.put(PODS, ("a", name), pod(name))
    first.put(PODS, ("a", "x"), pod("x", v="2"))
    first.remove(PODS, ("a", "y"))
    for _ in range(3):
        again = store(tmp_path / "log")
        assert content(again) == content(first)
        assert [s.raw for s in again.list(PODS)] == [s.raw for s in first.list(PODS)]
        assert again.has_any(PODS, "a")
    again.put(PODS, ("a", "w"), pod("w"))
    assert [name for name, *_ in content(store(tmp_path / "log"))] == ["w", "x", "z"]


def test_versions_go_on_although_the_clock_went_back(tmp_path: Path) -> None:
    last = store(tmp_path / "log", 1000).put(PODS, ("a", "x"), pod("x")).version
    assert store(tmp_path / "log", 5).put(PODS, ("a", "x"), pod("x")).version > last


def test_watch_of_before_must_list_anew(tmp_path: Path) -> None:
    first = store(tmp_path / "log", 1000)
    seen = first.put(PODS, ("a", "x"), pod("x")).version
    first.remove(PODS, ("a", "x"))
    again = store(tmp_path / "log", 2000)
    with pytest.raises(ApiError) as refused:
        again.events(PODS, seen)
    assert refused.value.code == 410


@pytest.mark.parametrize("lost", [1, 10, 60])
def test_half_a_last_line_is_no_change(tmp_path: Path, lost: int) -> None:
    first = store(tmp_path / "log")
    first.put(PODS, ("a", "x"), pod("x"))
    before = content(first)
    first.put(PODS, ("a", "y"), pod("y"))
    os.truncate(tmp_path / "log", (tmp_path / "log").stat().st_size - lost)
    assert content(store(tmp_path / "log")) == before


def test_damage_in_the_middle_is_named(tmp_path: Path) -> None:
    first = store(tmp_path / "log")
    for name in ("x", "y"):
        first.put(PODS, ("a", name), pod(name))
    text = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(text[5:])
    with pytest.raises(RuntimeError, match="log:1: "):
        store(tmp_path / "log")


def test_change_that_cannot_be_kept_does_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path / "log")
    one.put(PODS, ("a", "x"), pod("x"))
    before = content(one)
    real = os.write

    def full(fd: int, data: bytes) -> int:
        real(fd, data[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            one.put(PODS, ("a", "y"), pod("y"))
        with pytest.raises(OSError, match="No space"):
            one.remove(PODS, ("a", "x"))
    assert content(one) == before
    one.put(PODS, ("a", "z"), pod("z"))
    assert content(store(tmp_path / "log")) == content(one)


def test_file_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.apiserver.journal._SPARE", 10_000)
    one = store(tmp_path / "log")
    for number in range(1000):
        one.put(PODS, ("a", "x"), pod("x", number=str(number)))
    assert (tmp_path / "log").stat().st_size < 12_000
    assert content(store(tmp_path / "log")) == content(one)


def write(instance: Instance, plural: str, namespace: str, body: dict[str, Any], group: str = "") -> None:
    found = instance.registry.find(group, "v1", plural)
    assert found is not None
    instance.rest.create(Target(*found, namespace), body, OPTIONS)


def test_cluster_goes_on_where_it_was(tmp_path: Path) -> None:
    """Definitions are served again, addresses of Services stay taken, namespaces go on ending."""
    first = Instance(1, 100, ["10.96.0.0/16"], tmp_path / "log")
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget"}
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": "x.io", "names": names, "scope": "Namespaced", "versions": [version]}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.x.io"},
        "spec": spec,
    }
    write(first, "customresourcedefinitions", "", definition, "apiextensions.k8s.io")
    write(
        first,
        "widgets",
        "default",
        {"apiVersion": "x.io/v1", "kind": "Widget", "metadata": {"name": "w"}},
        "x.io",
    )
    service = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    write(first, "services", "default", service)
    write(first, "namespaces", "", {"metadata": {"name": "ending"}})
    (namespace,) = [s for s in first.store.list(GroupResource("", "namespaces")) if s.key[1] == "ending"]
    half = namespace.copy()
    half["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"  # the server was killed in the middle
    first.store.put(GroupResource("", "namespaces"), namespace.key, half)

    again = Instance(2, 100, ["10.96.0.0/16"], tmp_path / "log")
    assert [s.key for s in again.store.list(GroupResource("x.io", "widgets"))] == [("default", "w")]
    assert again.registry.find("x.io", "v1", "widgets")
    assert "ending" not in [s.key[1] for s in again.store.list(GroupResource("", "namespaces"))]
    write(again, "services", "default", {"metadata": {"name": "t"}, "spec": {"ports": [{"port": 80}]}})
    services = again.store.list(GroupResource("", "services"))
    assert len({s.obj["spec"]["clusterIP"] for s in services}) == len(services) == 3
