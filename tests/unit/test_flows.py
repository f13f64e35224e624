"""What the agent tells about connections, and where."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from felix_py.agent.flows import Flows
from felix_py.dataplane.fake import FakeFlowTable
from felix_py.metrics import Metrics
from felix_py.observe.flows_http import described, flows_route
from felix_py.observe.health import HealthServer
from felix_py.observe.listener import listen
from felix_py.records import Flow
from policy.model import Protocol

TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP
WEB, API, WORLD = "10.1.0.2", "10.1.0.3", "198.51.100.7"


def item(source: str, destination: str, protocol: str, port: int, *, replied: bool = True) -> dict[str, object]:
    return {
        "source": source,
        "destination": destination,
        "protocol": protocol,
        "port": port,
        "replied": replied,
    }


def test_the_latest_used_come_first_and_each_only_once() -> None:
    table = FakeFlowTable()
    table.connect(Flow(WORLD, WEB, TCP, 80, expires=10))
    table.connect(Flow(WORLD, WEB, TCP, 80, replied=False, expires=500))
    table.connect(Flow(WORLD, WEB, TCP, 80, expires=300))
    table.connect(Flow(WEB, "fd00::1", SCTP, 7, expires=200))
    table.connect(Flow(API, WEB, UDP, 53, replied=False, expires=400))
    table.connect(Flow(WORLD, WEB, None, 0, expires=600))
    table.connect(Flow(API, WORLD, TCP, 443, expires=700))
    assert json.loads(described(table, [WEB])) == [
        item(API, WEB, "UDP", 53, replied=False),
        item(WORLD, WEB, "TCP", 80),
        item(WEB, "fd00::1", "SCTP", 7),
    ]
    assert json.loads(described(table, [])) == []


@pytest.mark.parametrize("broken", [False, True])
async def test_the_health_server_gives_them_to_whoever_asks(broken: bool) -> None:
    table = FakeFlowTable()
    table.connect(Flow(API, WEB, TCP, 80))
    table.connect(Flow(API, WORLD, TCP, 80))
    if broken:
        table.broken = OSError(1, "Operation not permitted")
    async with (
        served(table, [WEB]) as address,
        aiohttp.ClientSession() as session,
        session.get(f"http://{address}/flows") as answer,
    ):
        if broken:
            assert answer.status == 503
            assert "Operation not permitted" in await answer.text()
        else:
            assert await answer.json() == [item(API, WEB, "TCP", 80)]


@asynccontextmanager
async def served(table: FakeFlowTable, addresses: list[str]) -> AsyncIterator[str]:
    """A health server on a free port of the loopback interface; gives its address."""

    async def refresh() -> None:
        pass

    metrics = Metrics()
    flows = Flows(table, table, metrics)
    route = flows_route(flows, lambda: addresses)
    server = HealthServer(metrics.registry, dict, dict, refresh, [route])
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    await server.start(private=listen(address))
    try:
        yield address
    finally:
        await server.stop()
        flows.close()


@pytest.mark.parametrize(
    ("flow", "text"),
    [
        (Flow(WORLD, WEB, TCP, 80), "198.51.100.7 -> 10.1.0.2:80/TCP"),
        (Flow("fd00::1", "fd00::2", UDP, 53), "fd00::1 -> [fd00::2]:53/UDP"),
        (Flow(WORLD, WEB, None, 0), "198.51.100.7 -> 10.1.0.2"),
    ],
)
def test_a_connection_for_people(flow: Flow, text: str) -> None:
    assert str(flow) == text


def test_its_threads_begin_with_it() -> None:
    """Later there may be no memory for one, and the event loop would wait for ever for it to begin."""
    flows = Flows(FakeFlowTable(), FakeFlowTable(), Metrics())
    names = {thread.name for thread in threading.enumerate()}
    flows.close()
    assert {"flows", "flows-release"} <= names
