"""ADDs that wait for an agent: for one that stops meanwhile, for one that is not ready; and calls beside them."""

from __future__ import annotations

import asyncio
import select
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from felix_py.cni import server
from tests.support.agent_process import AgentProcess
from tests.support.cni import Node, host_interfaces
from tests.support.fakeapi import FakeApi
from tests.support.isolate import NetworkNamespace
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]

CONFIG = b'{"cniVersion": "1.0.0", "name": "felix-py", "type": "felix-py-cni"}'


def test_an_agent_that_is_restarted_fails_no_add_that_waits_for_it(tmp_path: Path, make_netns: MakeNetns) -> None:
    """They were refused with error 11, and the kubelet made their sandboxes anew, later and later."""
    with FakeApi() as api, ThreadPoolExecutor(20) as threads:
        agent = AgentProcess(tmp_path, api, options=["--cni-timeout=60"])
        places = {f"p{number}": make_netns(f"p{number}") for number in range(20)}
        for name in places:
            agent.add_pod(name)
        api.refuse()
        with agent:
            agent.start()
            agent.until(lambda: agent.get("/readyz")[0] == 503, "serves")
            calls = [threads.submit(agent.call, "ADD", name, place.path) for name, place in places.items()]
            for _ in range(2):
                assert agent.stop()[0] == 0
                agent.start()
                agent.until(lambda: agent.get("/readyz")[0] == 503, "serves")
            api.listen()
            assert {call.result()[0] for call in calls} == {0}
            assert len(host_interfaces()) == len(places)


def client(node: Node, command: str, container: str, netns: str) -> subprocess.Popen[bytes]:
    """A call under way."""
    environment = node.environment(command, container, netns)
    process = subprocess.Popen(
        [node.client], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(CONFIG)
    process.stdin.close()
    return process


def ended(process: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    assert process.stdout is not None
    with process.stdout:
        printed = process.stdout.read()
    return process.wait(30), printed


@pytest.mark.parametrize("killed", [False, True])
async def test_a_del_of_what_waits_comes_after_it(tmp_path: Path, make_netns: MakeNetns, killed: bool) -> None:
    node, place = Node(tmp_path, timeout=60), make_netns("pod")
    node.network.reason = "the cluster is not known yet"
    async with node:
        adding = client(node, "ADD", "c1", place.path)
        await until(lambda: node.plugin.is_busy(("c1", "eth0")))
        if killed:
            adding.kill()
            await asyncio.to_thread(ended, adding)
        deleting = client(node, "DEL", "c1", place.path)
        await until(lambda: len(node.server._tasks) == 2)
        await node.network.begin()
        assert (await asyncio.to_thread(ended, deleting)) == (0, b"")
        if not killed:
            assert (await asyncio.to_thread(ended, adding))[0] == 0
        assert not host_interfaces()
        assert node.store.all() == ()
        assert not node.spool.exists()


async def test_a_server_that_stops_hands_back_also_what_it_has_not_taken(
    tmp_path: Path, make_netns: MakeNetns
) -> None:
    """Cut off, an ADD is an error: nobody knows how far it has come."""
    node, place = Node(tmp_path, timeout=60), make_netns("pod")
    node.network.reason = "the cluster is not known yet"
    async with node:
        listening = node.server._listening
        assert listening is not None
        asyncio.get_running_loop().remove_reader(listening)
        adding = client(node, "ADD", "c1", place.path)
        await until(lambda: select.select([listening], [], [], 0)[0])
        assert not node.plugin.is_busy(("c1", "eth0"))
    async with node:
        await until(lambda: node.plugin.is_busy(("c1", "eth0")))
        await node.network.begin()
        assert (await asyncio.to_thread(ended, adding))[0] == 0


async def test_hundreds_that_wait(tmp_path: Path) -> None:
    """More than the server takes: the others are told to try again, and a DEL comes past all of them."""
    node = Node(tmp_path, timeout=600)
    node.network.reason = "the cluster is not known yet"
    async with node:
        calls = [client(node, "ADD", f"c{number}", "/run/netns/none") for number in range(700)]
        await until(lambda: len(node.server._tasks) == node.server._adds == server._MOST_ADDS, 60)
        deleting = client(node, "DEL", "other", "")
        assert (await asyncio.to_thread(ended, deleting)) == (0, b"")
        assert node.server._adds == server._MOST_ADDS
        await node.network.begin()
        found = [await asyncio.to_thread(ended, call) for call in calls]
        assert {code for code, _ in found} == {1}
        refused = [printed for _, printed in found if b"pods of this node are being connected already" in printed]
        assert len(refused) == 700 - server._MOST_ADDS
        assert all(b'"code": 11' in printed or b'"code":11' in printed for printed in refused)
        assert not node.spool.exists()
