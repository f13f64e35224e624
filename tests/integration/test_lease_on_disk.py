"""An ADD goes on while the disk writes its lease, and answers when it has."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.runtime import PluginError
from policy.model import Family
from tests.support.cni import Node, host_interfaces, pod_args
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


class Disk:
    """``writing`` is set while a flush waits for ``goes``; ``fails``: what it says then."""

    def __init__(self) -> None:
        self.writing, self.goes = threading.Event(), threading.Event()
        self.fails = 0

    def flush(self, _file: int) -> None:
        self.writing.set()
        assert self.goes.wait(60)
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    disk.goes.set()
    monkeypatch.setattr(os, "fdatasync", disk.flush)
    yield disk
    disk.goes.set()


@asynccontextmanager
async def adding(
    tmp_path: Path, pod: NetworkNamespace, disk: Disk, refuse: str | None = None
) -> AsyncIterator[tuple[Node, asyncio.Task[dict[str, Any]]]]:
    """A node, and an ADD whose policy was asked for while the disk writes; ``refuse``: what is said of it."""
    async with Node(tmp_path, timeout=60) as node:
        disk.goes.clear()
        node.network.refuse = refuse
        call = asyncio.create_task(node.runtime.add("c1", pod.path, args=pod_args("web")))
        await until(lambda: bool(node.network.enforced))
        yield node, call


async def test_everything_is_there_when_the_disk_has_written_and_nothing_is_answered_before(
    tmp_path: Path, make_netns: MakeNetns, disk: Disk
) -> None:
    pod = make_netns("pod")
    async with adding(tmp_path, pod, disk) as (_, call):
        assert disk.writing.is_set()
        assert "10.65.0.1/32" in pod.run("ip", "-4", "addr", "show", "eth0")
        assert not call.done()
        disk.goes.set()
        assert [entry["address"] for entry in (await call)["ips"]] == ["10.65.0.1/32", "fd65::1/128"]


async def test_of_a_lease_that_the_disk_refuses_nothing_stays(
    tmp_path: Path, make_netns: MakeNetns, disk: Disk
) -> None:
    pod = make_netns("pod")
    async with adding(tmp_path, pod, disk) as (node, call):
        disk.fails = errno.EIO
        disk.goes.set()
        with pytest.raises(PluginError, match="the address store cannot be written"):
            await call
        assert not node.network.enforced
        assert not host_interfaces()
        assert "eth0" not in pod.run("ip", "-o", "link")
        disk.fails = 0
        await node.plugin.look()
        assert node.leases.numbers(Family.V4) == []
        await node.runtime.add("c1", pod.path, args=pod_args("web"))


async def test_a_pod_whose_policy_cannot_be_written_gives_its_lease_back_after_the_disk_has_it(
    tmp_path: Path, make_netns: MakeNetns, disk: Disk
) -> None:
    pod = make_netns("pod")
    async with adding(tmp_path, pod, disk, "no room for rules") as (node, call):
        disk.goes.set()
        with pytest.raises(PluginError, match="no room for rules"):
            await call
        assert not node.network.enforced
        assert not host_interfaces()
        assert not node.store.all()
