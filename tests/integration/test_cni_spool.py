"""Calls that find no agent are spooled, and made up for: in order, once, and never of what has come since."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni import server, spool
from felix_py.cni.network import NetworkError
from felix_py.cni.protocol import Call, parse_call
from felix_py.cni.server import CNIServer
from felix_py.layout import interface_name
from tests.support.cni import CONFIG, GC, Node, execute, host_interfaces, pod_args
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


@pytest.mark.parametrize("command", ["DEL", "GC"])
def test_without_an_agent_cleaning_up_is_kept_for_later(tmp_path: Path, command: str) -> None:
    node = Node(tmp_path)
    environment = node.environment(command, "c1", "/run/netns/x")
    assert execute(node, environment) == (0, None)
    (spooled,) = node.spool.iterdir()
    call = parse_call(spooled.read_bytes())
    assert (call.environment, call.stdin) == (environment, CONFIG)
    assert stat.S_IMODE(spooled.stat().st_mode) == 0o600


def test_a_spool_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.spool.parent.mkdir()
    node.spool.touch()
    code, answer = execute(node, node.environment("DEL", "c1", ""))
    assert code == 1
    assert answer is not None
    assert answer["code"] == 11
    assert "Not a directory" in answer["msg"]


async def test_an_add_comes_after_the_spooled_del_of_its_interface(tmp_path: Path, make_netns: MakeNetns) -> None:
    """The id is used again at once, while another client that found no agent still holds the spool."""
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
    await node.runtime.delete("c1")
    folder = os.open(node.spool, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_SH)
    async with node:
        adding = asyncio.create_task(node.runtime.add("c1", pod.path, args=pod_args("web")))
        await until(lambda: len(node.server._tasks) == 2)  # the spool, and this call
        assert not adding.done()
        os.close(folder)
        await adding
        assert host_interfaces() == {interface_name("c1", "eth0")}
        await until(lambda: not list(node.spool.glob("[!.]*")))
        assert host_interfaces() == {interface_name("c1", "eth0")}


async def test_the_spool_is_worked_off_at_start(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
    assert execute(node, node.environment("DEL", "c1", pod.path)) == (0, None)
    (node.spool / "00-nonsense").write_bytes(b"nonsense")
    assert host_interfaces()
    async with node:
        await until(lambda: not list(node.spool.glob("[!.]*")))
        assert not host_interfaces()
        assert not node.store.all()
        assert [entry.name for entry in node.spool.iterdir()] == [".rejected-00-nonsense"]


async def test_a_spooled_call_that_fails_stays(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    async with node:
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
    node.network.stuck = "kernel says no"
    execute(node, node.environment("DEL", "c1", pod.path))
    async with node:
        await until(lambda: not node.server._tasks)
        assert len(list(node.spool.iterdir())) == 1
    node.network.stuck = None
    async with node:
        await until(lambda: not node.server._tasks)
        assert not list(node.spool.iterdir())
        assert not node.store.all()


async def test_a_spooled_del_that_fails_is_made_up_for_by_the_same_agent(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    """The runtime does not repeat it, and what came later in the spool does not wait for it."""
    node = Node(tmp_path)
    pods = {name: make_netns(name) for name in ("c1", "c2")}
    release, kept = node.network.release, {"c1"}

    async def refusing(lease: Any) -> None:
        if lease.container in kept:
            raise NetworkError("kernel says no")
        await release(lease)

    async with node:
        for name, pod in pods.items():
            await node.runtime.add(name, pod.path, args=pod_args(name))
    for name, pod in pods.items():
        execute(node, node.environment("DEL", name, pod.path))
    node.network.release = refusing  # type: ignore[method-assign]
    async with node:
        await until(lambda: [lease.container for lease in node.store.all()] == ["c1"])
        await until(lambda: not node.server._tasks)
        assert len(list(node.spool.iterdir())) == 1
        kept.clear()
        await until(lambda: not list(node.spool.iterdir()))
        assert not node.store.all()


async def test_a_spooled_del_takes_nothing_that_has_come_since(tmp_path: Path, make_netns: MakeNetns) -> None:
    """The runtime has used the container's id again while the DEL was to be made up for."""
    node, pod = Node(tmp_path), make_netns("pod")
    environment = node.environment("DEL", "c1", pod.path)
    async with node:
        before = node.plugin.present()
        await node.runtime.add("c1", pod.path, args=pod_args("web"))
        answer = await node.server.answer(Call(environment, CONFIG), before)
        assert answer.code == 0
        assert [lease.container for lease in node.store.all()] == ["c1"]
        assert host_interfaces() == {interface_name("c1", "eth0")}


async def test_a_spooled_del_that_has_failed_is_not_found_anew_with_another_socket(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be for what has come since."""
    monkeypatch.setattr(server, "LOOK", 0.05)
    monkeypatch.setattr(spool, "_RETRY", (600.0, 600.0))
    node, pods = Node(tmp_path), {name: make_netns(name) for name in ("c1", "c2")}
    async with node:
        for name, pod in pods.items():
            await node.runtime.add(name, pod.path, args=pod_args(name))
    execute(node, node.environment("DEL", "c1", ""))
    node.network.stuck = "kernel says no"
    async with node:
        await until(lambda: not node.server._tasks)
        node.network.stuck = None
        node.socket.unlink()
        assert await asyncio.to_thread(execute, node, node.environment("DEL", "c2", "")) == (0, None)
        await until(lambda: node.socket.exists() and not node.server._tasks)
        await until(lambda: len(list(node.spool.glob("[!.]*"))) == 1)
        assert [lease.container for lease in node.store.all()] == ["c1"]


async def test_no_call_is_lost_between_no_agent_and_a_starting_one(tmp_path: Path) -> None:
    """An agent that has started waits for a client that found nobody and is still writing its call."""
    node = Node(tmp_path)
    node.spool.mkdir(parents=True)
    client = os.open(node.spool, os.O_RDONLY)
    answers: list[Any] = []
    original = CNIServer.answer

    async def noting(self: CNIServer, call: Any, before: Any) -> Any:
        answers.append(await original(self, call, before))
        return answers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CNIServer, "answer", noting)
        fcntl.flock(client, fcntl.LOCK_SH)
        async with node:
            assert node.server._tasks  # the drain waits for the lock
            entry = node.spool / "1-late"
            call = b"felix-py-cni/1 16 0\nCNI_COMMAND=DEL\0"
            entry.write_bytes(call)
            fcntl.flock(client, fcntl.LOCK_UN)
            await until(lambda: not node.server._tasks)
            assert [answer.code for answer in answers] == [1]  # it was taken up (and refused: no container)
    os.close(client)


async def test_a_spooled_gc_takes_nothing_that_has_come_since(tmp_path: Path, make_netns: MakeNetns) -> None:
    """Its list is as old as the call, and what comes before it in the spool may take long."""
    node = Node(tmp_path)
    pods = {name: make_netns(name) for name in ("gone", "kept", "stale", "new")}
    release, hold = node.network.release, asyncio.Event()

    async def slow(lease: Any) -> None:
        if lease.container == "gone":
            await hold.wait()
        await release(lease)

    async with node:
        for name in ("gone", "kept", "stale"):
            await node.runtime.add(name, pods[name].path, args=pod_args(name))
    execute(node, node.environment("DEL", "gone", ""))
    assert execute(node, node.environment("GC", "", ""), GC)[0] == 0
    node.network.release = slow  # type: ignore[method-assign]
    async with node:
        await until(lambda: host_interfaces() == {interface_name(name, "eth0") for name in ("kept", "stale")})
        await node.runtime.add("new", pods["new"].path, args=pod_args("new"))
        hold.set()
        await until(lambda: not node.server._tasks)
        assert [lease.container for lease in node.store.all()] == ["kept", "new"]
        assert not list(node.spool.iterdir())


async def test_a_spooled_gc_is_not_kept_for_a_later_agent(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod, new = Node(tmp_path), make_netns("pod"), make_netns("new")
    async with node:
        await node.runtime.add("stale", pod.path, args=pod_args("stale"))
    node.network.stuck = "kernel says no"
    execute(node, node.environment("GC", "", ""), GC)
    async with node:
        await until(lambda: not node.server._tasks)
        node.network.stuck = None
        await node.runtime.add("new", new.path, args=pod_args("new"))
    async with node:
        await until(lambda: not node.server._tasks)
        assert "new" in [lease.container for lease in node.store.all()]


async def test_what_is_no_file_in_the_spool_is_put_aside(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.spool.mkdir(parents=True)
    os.mkfifo(node.spool / "1-fifo")
    (node.spool / "2-link").symlink_to("/dev/zero")
    (node.spool / "3-folder").mkdir()
    async with node:
        await until(lambda: not node.server._tasks)
    assert {entry.name for entry in node.spool.iterdir()} == {
        f".rejected-{name}" for name in ("1-fifo", "2-link", "3-folder")
    }
