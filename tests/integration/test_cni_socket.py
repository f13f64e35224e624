"""What the C client and the server do when the other side is away, slow, or talks nonsense."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni import server
from felix_py.cni.conflist import install_client
from felix_py.cni.errors import SUPPORTED_VERSIONS
from felix_py.cni.server import CNIServer, SocketInUse
from felix_py.layout import interface_name
from felix_py.metrics import Metrics
from tests.support.cni import CONFIG, GC, Node, built_client, execute, host_interfaces, pod_args
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


async def say(node: Node, data: bytes, *, end: bool = True) -> bytes:
    """Write raw bytes to the server and read all that it answers."""
    reader, writer = await asyncio.open_unix_connection(str(node.socket))
    try:
        writer.write(data)
        await writer.drain()
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20)
    except ConnectionError:
        return b""
    finally:
        writer.close()


# --- no agent ----------------------------------------------------------------------------------------


def test_version_needs_no_agent(tmp_path: Path) -> None:
    code, answer = execute(Node(tmp_path), {"CNI_COMMAND": "VERSION"})
    assert code == 0
    assert answer == {"cniVersion": "1.1.0", "supportedVersions": list(SUPPORTED_VERSIONS)}


def test_without_a_command_it_says_what_it_is(tmp_path: Path) -> None:
    done = subprocess.run([Node(tmp_path).client], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "CNI plugin" in done.stderr


@pytest.mark.parametrize("command", ["ADD", "CHECK", "STATUS"])
def test_without_an_agent_the_runtime_is_told_to_try_again(tmp_path: Path, command: str) -> None:
    node = Node(tmp_path)
    code, answer = execute(node, node.environment(command, "c1", "/run/netns/x"))
    assert code == 1
    assert answer is not None
    assert answer["code"] == 11
    assert str(node.socket) in answer["msg"]
    assert not node.spool.exists()


async def test_an_add_outlasts_the_restart_of_an_agent(tmp_path: Path, make_netns: MakeNetns) -> None:
    """The socket that a killed agent left answers nobody; the next agent has not seen the cluster yet."""
    node, pod = Node(tmp_path, timeout=30), make_netns("pod")
    node.socket.parent.mkdir()
    node.network.reason = "the cluster is not known yet"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.socket))
    adding = asyncio.create_task(node.runtime.add("c1", pod.path, args=pod_args("web")))
    await asyncio.wait([adding], timeout=0.5)  # it tries, and is refused
    async with node:
        await until(lambda: node.plugin.is_busy(("c1", "eth0")))
        assert not adding.done()
        assert not host_interfaces()
        await node.network.begin()
        await adding
        assert node.network.enforced


def test_a_socket_that_a_crash_left_is_no_agent(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.socket))
    code, answer = execute(node, node.environment("ADD", "c1", "/run/netns/x"))
    assert code == 1
    assert answer is not None
    assert answer["code"] == 11


def test_socket_path_beside_the_client(tmp_path: Path) -> None:
    """The file is found beside the client itself, also when that is called through a link."""
    client = install_client(tmp_path, tmp_path / "somewhere" / "else.sock", built_client())
    (tmp_path / "link").symlink_to(client)
    for program in (client, tmp_path / "link"):
        done = subprocess.run([program], env={"CNI_COMMAND": "ADD"}, input=b"", capture_output=True, check=False)
        assert str(tmp_path / "somewhere" / "else.sock") in json.loads(done.stdout)["msg"]


# --- spool -------------------------------------------------------------------------------------------


async def test_calls_wait_while_the_agent_has_as_many_as_it_takes(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DEL that is turned away would be in the spool until the agent's next start."""
    monkeypatch.setattr(server, "_MOST_CALLS", 2)
    node = Node(tmp_path)
    pods = {name: make_netns(name) for name in ("c1", "c2", "c3")}
    enforce, hold = node.network.enforce, asyncio.Event()

    async def slow(lease: Any) -> None:
        await hold.wait()
        await enforce(lease)

    async with node:
        await node.runtime.add("c1", pods["c1"].path, args=pod_args("c1"))
        node.network.enforce = slow  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as calls:
            for name in ("c2", "c3"):
                calls.create_task(node.runtime.add(name, pods[name].path, args=pod_args(name)))
            await until(lambda: len(node.server._tasks) == 2)
            environment = node.environment("DEL", "c1", "")
            deleting = calls.create_task(asyncio.to_thread(execute, node, environment))
            await until(lambda: node.server._full or node.spool.exists())
            hold.set()
        assert deleting.result() == (0, None)
        assert not node.spool.exists()
        assert {lease.container for lease in node.store.all()} == {"c2", "c3"}


async def test_what_frees_and_what_asks_has_places_that_adds_do_not_take(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DELs free what ADDs wait for."""
    monkeypatch.setattr(server, "_MOST_CALLS", 3)
    monkeypatch.setattr(server, "_MOST_ADDS", 2)
    node = Node(tmp_path, timeout=60)
    pods = {name: make_netns(name) for name in ("c1", "c2", "c3", "c4")}
    enforce, hold = node.network.enforce, asyncio.Event()

    async def slow(lease: Any) -> None:
        await hold.wait()
        await enforce(lease)

    async with node:
        await node.runtime.add("c1", pods["c1"].path, args=pod_args("c1"))
        node.network.enforce = slow  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as calls:
            for name in ("c2", "c3"):
                calls.create_task(node.runtime.add(name, pods[name].path, args=pod_args(name)))
            await until(lambda: len(node.store.all()) == 3)
            code, answer = await asyncio.to_thread(execute, node, node.environment("ADD", "c4", pods["c4"].path))
            assert (code, answer and answer["code"]) == (1, 11)
            for command in ("STATUS", "DEL", "DEL"):
                environment = node.environment(command, "c1", "")
                assert await asyncio.to_thread(execute, node, environment, GC) == (0, None)
            hold.set()
        await node.runtime.add("c4", pods["c4"].path, args=pod_args("c4"))
        assert {lease.container for lease in node.store.all()} == {"c2", "c3", "c4"}
        assert not node.spool.exists()


@pytest.mark.parametrize("removed", ["the socket", "its folder"])
async def test_a_socket_that_somebody_has_removed_is_made_again(
    tmp_path: Path, make_netns: MakeNetns, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    """What came meanwhile is done: an ADD waits for it, a DEL is in the spool."""
    monkeypatch.setattr(server, "LOOK", 2.0)
    node = Node(tmp_path)
    pods = {name: make_netns(name) for name in ("c1", "c2", "c3")}
    async with node:
        for name in ("c1", "c2"):
            await node.runtime.add(name, pods[name].path, args=pod_args(name))
        if removed == "the socket":
            node.socket.unlink()
        else:
            shutil.rmtree(node.socket.parent)
        adding = asyncio.create_task(node.runtime.add("c3", pods["c3"].path, args=pod_args("c3")))
        assert await asyncio.to_thread(execute, node, node.environment("DEL", "c1", "")) == (0, None)
        await adding
        await until(lambda: not list(node.spool.glob("[!.]*")) and not node.server._tasks)
        assert {lease.container for lease in node.store.all()} == {"c2", "c3"}
        assert host_interfaces() == {interface_name(name, "eth0") for name in ("c2", "c3")}
        assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600
        await node.runtime.delete("c2")
    assert not node.socket.exists()


async def test_another_agents_socket_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK", 0.05)
    node = Node(tmp_path)
    async with node:
        node.socket.unlink()
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(node.socket))
            theirs.listen()
            inode = node.socket.stat().st_ino
            looked = asyncio.get_running_loop().create_future()
            original = node.server._look
            monkeypatch.setattr(
                node.server, "_look", lambda: (original(), looked.done() or looked.set_result(None))
            )
            await asyncio.wait_for(looked, 60)
            assert node.socket.stat().st_ino == inode


# --- an agent that misbehaves ------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [b"", b"0 10\n{}", b"0", b"nonsense\n", b"0 2 {}", b"0 2\n{}}"])
async def test_an_answer_cut_short_is_no_answer(tmp_path: Path, answer: bytes) -> None:
    node = Node(tmp_path)
    node.socket.parent.mkdir()

    async def crash(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(CONFIG)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(crash, str(node.socket)):
        for command in ("ADD", "DEL"):
            environment = node.environment(command, "c1", "/run/netns/x")
            code, told = await asyncio.to_thread(execute, node, environment)
            if command == "ADD":
                assert code == 1
                assert told is not None
                assert told["code"] == 11
                assert "went away" in told["msg"]
            else:
                assert (code, told) == (0, None)
                assert len(list(node.spool.iterdir())) == 1


@pytest.mark.parametrize("pieces", [[b"0 2\n{}"], [b"0", b" 2\n", b"{", b"}"], [b"1 2\n", b"{}"]])
async def test_an_answer_is_whole_by_its_length(tmp_path: Path, pieces: list[bytes]) -> None:
    """The client does not wait for an agent that has answered to close the connection."""
    node = Node(tmp_path)
    node.socket.parent.mkdir()
    ended = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(CONFIG)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        await ended.wait()
        writer.close()

    async with await asyncio.start_unix_server(answer, str(node.socket)):
        code, told = await asyncio.to_thread(execute, node, node.environment("ADD", "c1", "/run/netns/x"))
        ended.set()
    assert (code, told) == (int(pieces[0][:1]), {})


def test_an_agent_that_hangs_is_given_up(tmp_path: Path) -> None:
    """The client's alarm, delivered early: what a runtime sees after a minute."""
    node = Node(tmp_path)
    node.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(node.socket))
        agent.listen()
        process = subprocess.Popen(
            [node.client],
            env=node.environment("ADD", "c1", "/x"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(CONFIG)
        process.stdin.close()
        connection, _ = agent.accept()
        process.send_signal(signal.SIGALRM)
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
        process.stdout.close()
        connection.close()
        assert process.wait() == 1
    assert told["code"] == 11
    assert "60 seconds" in told["msg"]


# --- a client that misbehaves ------------------------------------------------------------------------


GARBAGE = {
    "nothing": b"",
    "one byte": b"x",
    "random": random.Random(7).randbytes(5000),
    "half a head": b"felix-py-cni/1 10",
    "another version": b"felix-py-cni/2 0 0\n",
    "negative": b"felix-py-cni/1 -1 5\n",
    "huge head": b"felix-py-cni/1 " + b"9" * 200_000,
    "huge length": b"felix-py-cni/1 10 99999999\n",
    "half a body": b"felix-py-cni/1 16 1000\nCNI_COMMAND=ADD\0{",
    "not text": b"felix-py-cni/1 2 0\n\xff\xfe",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_gets_an_error_and_the_server_goes_on(tmp_path: Path, garbage: bytes) -> None:
    node = Node(tmp_path)
    async with node:
        answer = await say(node, garbage)
        if answer:  # a peer that is still sending may see only the reset
            head, _, body = answer.partition(b"\n")
            assert head == b"1 %d" % len(body)
            assert json.loads(body)["code"] == 6
        code, told = await asyncio.to_thread(execute, node, node.environment("DEL", "c1", ""))
        assert (code, told) == (0, None)


async def test_a_client_that_goes_away_does_no_harm(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    environment = "".join(f"{k}={v}\0" for k, v in node.environment("ADD", "c1", pod.path).items()).encode()
    async with node:
        _, writer = await asyncio.open_unix_connection(str(node.socket))
        writer.write(b"felix-py-cni/1 %d %d\n%s%s" % (len(environment), len(CONFIG), environment, CONFIG))
        writer.close()
        await until(lambda: node.network.enforced and not node.server._tasks)
        await node.runtime.delete("c1")
        assert not host_interfaces()


CONFIGS: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 6, "not JSON"),
    "half": (CONFIG[:30], 6, "not JSON"),
    "random": (random.Random(8).randbytes(3000), 6, "not JSON"),
    "deep": (b'{"args": {"x": ' + b"[" * 200_000, 6, "not JSON"),
    "list": (b"[]", 7, "Expected `object`"),
    "no version": (b'{"name": "n"}', 1, "cniVersion ''"),
    "future": (b'{"cniVersion": "2.0.0", "name": "n"}', 1, "'2.0.0' is not supported"),
    "bad name": (b'{"cniVersion": "1.0.0", "name": "a b"}', 7, "name 'a b'"),
    "wrong type": (b'{"cniVersion": "1.0.0", "name": 7}', 7, "$.name"),
    "ranges": (
        b'{"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"ipRanges": [["x"]]}}',
        2,
        "runtimeConfig.ipRanges is not supported: [['x']]",
    ),
    "bad ip": (b'{"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"ips": ["x"]}}', 7, "'x'"),
    "bad mac": (b'{"cniVersion": "1.0.0", "name": "n", "runtimeConfig": {"mac": "x"}}', 7, "'x'"),
    "bad prevResult": (
        b'{"cniVersion": "0.4.0", "name": "n", "prevResult": {"ips": [{"address": "x"}]}}',
        7,
        "prevResult.ips",
    ),
}


@pytest.mark.parametrize(("config", "code", "words"), CONFIGS.values(), ids=CONFIGS.keys())
async def test_bad_configurations(tmp_path: Path, config: bytes, code: int, words: str) -> None:
    node = Node(tmp_path)
    async with node:
        told_code, told = await asyncio.to_thread(execute, node, node.environment("ADD", "c1", "/x"), config)
        assert told_code == 1
        assert told is not None
        assert told["code"] == code
        assert words in told["msg"]


async def test_large_input_and_output(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")
    previous = {"interfaces": [{"name": f"if{n}", "mac": "0" * 17} for n in range(20_000)]}
    config = {"cniVersion": "1.0.0", "name": "felix-py", "args": {"x": "y" * 3_000_000}, "prevResult": previous}
    async with node:
        stdin = json.dumps(config).encode()
        code, told = await asyncio.to_thread(execute, node, node.environment("ADD", "c1", pod.path), stdin)
        assert code == 0
        assert told is not None
        assert len(told["interfaces"]) == 20_002
        assert told["ips"][0]["interface"] == 20_001


async def test_a_defect_is_an_answer_too(tmp_path: Path, make_netns: MakeNetns) -> None:
    node, pod = Node(tmp_path), make_netns("pod")

    def broken() -> tuple[str, ...]:
        raise RuntimeError("a defect")

    node.network.pod_cidrs = broken  # type: ignore[method-assign]
    async with node:
        code, told = await asyncio.to_thread(execute, node, node.environment("ADD", "c1", pod.path))
        assert code == 1
        assert told == {"cniVersion": "1.0.0", "code": 100, "msg": "internal error: RuntimeError: a defect"}


# --- the socket --------------------------------------------------------------------------------------


async def test_only_root_may_call(tmp_path: Path) -> None:
    node = Node(tmp_path)
    async with node:
        assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600


async def test_a_second_agent_is_refused_and_a_crashed_one_replaced(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.socket))
    async with node:
        with pytest.raises(SocketInUse, match="another felix-py agent"):
            await CNIServer(node.plugin, node.socket, Metrics()).start()
        assert (await asyncio.to_thread(execute, node, node.environment("DEL", "c1", "")))[0] == 0
