"""Agent and API server start at the same time: what the server does not know yet stays in force."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from felix_py.datastore.absence import DEFINITIONS
from tests.support import faults
from tests.support.agent_program import NODE, AgentProgram
from tests.support.cni import pod_args
from tests.support.fakeapi import CLUSTER_POLICIES, NAMESPACES, NODES, PODS, FakeApi, Fault, pod
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

PORT = 5000
GUARD = {
    "metadata": {"name": "guard", "uid": "uid-guard"},
    "spec": {
        "tier": "Admin",
        "priority": 1,
        "subject": {"namespaces": {}},
        "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
    },
}


def populate(api: FakeApi) -> None:
    api.install(CLUSTER_POLICIES)
    api.put(CLUSTER_POLICIES, GUARD)
    api.put(NODES, {"metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.65.0.0/24"]}})
    api.put(NAMESPACES, {"metadata": {"name": "default"}})
    for name in ("client", "server"):
        api.put(PODS, pod(name))


def until_asked(api: FakeApi, times: int) -> Fault:
    """404, until the kind has been asked for so often. Nor does the server know of any definition until then."""
    refuse = faults.refuse(404, "NotFound")
    return lambda exchange: len(api.verbs(CLUSTER_POLICIES)) < times and refuse(exchange)


@contextmanager
def knocking(client: NetworkNamespace, server: NetworkNamespace, address: str) -> Iterator[list[bytes]]:
    """The client sends to the server every two milliseconds; yields what has arrived."""
    arrived: list[bytes] = []
    over = threading.Event()
    with server.enter():
        inbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        inbox.bind(("0.0.0.0", PORT))
    with client.enter():
        outbox = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inbox.setblocking(False)

    def knock() -> None:
        while not over.wait(0.002):
            outbox.sendto(b"knock", (address, PORT))
            try:
                arrived.append(inbox.recv(10))
            except BlockingIOError:
                continue

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield arrived
    finally:
        over.set()
        thread.join()
        inbox.close()
        outbox.close()


@pytest.mark.parametrize("backend", ["legacy", "nft"])
async def test_an_admin_tier_stays_in_force_though_the_server_says_that_there_is_none(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], backend: str
) -> None:
    run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "router")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "uplink")
    client, server = make_netns("client"), make_netns("server")
    with FakeApi() as api:
        populate(api)
        agent = AgentProgram(tmp_path, api.url, f"--backend={backend}")
        with agent:
            agent.start()
            await asyncio.to_thread(agent.wait_ready)
            await agent.runtime.add("client", client.path, args=pod_args("client"))
            result = await agent.runtime.add("server", server.path, args=pod_args("server"))
        address = result["ips"][0]["address"].partition("/")[0]
        with knocking(client, server, address) as arrived:
            asked = len(api.verbs(CLUSTER_POLICIES))
            for path in (CLUSTER_POLICIES, DEFINITIONS):
                api.fault("*", until_asked(api, asked + 4), path=path, times=100)
            with agent:
                agent.start()
                await asyncio.to_thread(agent.wait_ready)
                assert len(api.verbs(CLUSTER_POLICIES)) - asked >= 4, "it was not content with a 404"
            assert arrived == [], "let in while the server was starting"
            # The other side of it: once the policy is gone, so are its rules.
            api.delete(CLUSTER_POLICIES, "", "guard")
            with agent:
                agent.start()
                await asyncio.to_thread(agent.wait_ready)
                async with asyncio.timeout(10):
                    await until(lambda: arrived)
