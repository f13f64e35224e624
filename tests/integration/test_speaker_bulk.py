"""A peer that announces 50,000 prefixes: taking them over and losing them never holds the event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from bgp.rib import Reached
from bgp.sidecar import SOCKET
from felix_py.speaker import Speaker
from tests.support.bgp import TOR_ASN, config
from tests.support.frozen import as_in_an_agent
from tests.support.isolate import run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

MANY = 50_000
MOST = 0.5
"""Seconds of processor time that one turn may take: a turn over all routes took seconds. Measured: 0.08, and 0.23
beside a machine full of others, who empty the processor's caches."""

PEER, LOCAL = "10.9.0.2", "10.9.0.1"


def event(counter: int, kind: str, **content: object) -> bytes:
    neighbor = {"address": {"local": LOCAL, "peer": PEER}, **content}
    return (json.dumps({"exabgp": "5.0", "counter": counter, "type": kind, "neighbor": neighbor}) + "\n").encode()


def updates(next_hops: int) -> Iterator[bytes]:
    attributes = {"origin": "igp", "as-path": {"0": {"element": "as-sequence", "value": [TOR_ASN]}}}
    for first in range(0, MANY, 50):
        numbers = range(first, first + 50)
        entries = [{"nlri": f"10.{128 + (n >> 16)}.{(n >> 8) & 255}.{n & 255}/32"} for n in numbers]
        hop = f"10.9.{1 + first // 50 % next_hops}.9"
        routes = {"attribute": attributes, "announce": {"ipv4 unicast": {hop: entries}}}
        yield event(2 + first // 50, "update", direction="receive", message={"update": routes})


@contextmanager
def turns_timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Processor time of every callback on the event loop."""
    found: list[float] = []
    inner: Callable[[asyncio.Handle], None] = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        started = time.thread_time()
        inner(handle)
        found.append(time.thread_time() - started)

    monkeypatch.setattr(asyncio.Handle, "_run", timed)
    with as_in_an_agent():
        yield found
    monkeypatch.undo()


class Bridge:
    """ExaBGP as far as the agent sees it: an established session, and whatever is put into it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.writer: asyncio.StreamWriter | None = None
        self._done = asyncio.Event()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._folder / SOCKET)

    async def stop(self) -> None:
        self._server.close()
        await self._done.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        while await reader.readline():
            writer.write(b"done\n")
        writer.close()
        await writer.wait_closed()
        self._done.set()

    async def send(self, data: bytes) -> None:
        assert self.writer is not None
        self.writer.write(data)
        await self.writer.drain()


@pytest.mark.parametrize("next_hops", [1, pytest.param(200, marks=pytest.mark.heavy)])
async def test_no_turn_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_hops: int) -> None:
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    run("ip", "address", "add", f"{LOCAL}/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up")
    told: dict[str, tuple[str, ...]] = {}
    bridge = Bridge(tmp_path)
    await bridge.start()
    speaker = Speaker(tmp_path, told.update, structlog.get_logger())
    speaker.set_filter(within=["10.128.0.0/9"], never=[])
    speaker.set_config(config({"peerIP": PEER, "asNumber": TOR_ASN}))
    task = asyncio.create_task(speaker.run())
    await until(lambda: bridge.writer)
    lines = list(updates(next_hops))
    with turns_timed(monkeypatch) as turns:
        await bridge.send(event(1, "state", state="up"))
        for line in lines:
            await bridge.send(line)
        await until(lambda: len(speaker.routes()) == MANY, 120)
        # All links lose their carrier, and come back: nothing is left, then everything.
        speaker.set_reach(lambda _hop: Reached(problem="its link has no carrier"))
        await until(lambda: not speaker.routes() and speaker.prefixes_without_next_hop() == MANY, 120)
        assert not any(told.values())
        speaker.set_reach(lambda _hop: Reached("up0", 24))
        await until(lambda: len(speaker.routes()) == MANY, 120)
        assert len(speaker.unresolved()) == 0
        speaker.set_filter(within=["10.128.0.0/9"], never=["10.128.0.0/24"])
        await until(lambda: len(speaker.routes()) == MANY - 256, 120)
        await bridge.send(event(9999, "state", state="down", reason="notification received (6,2)"))
        await until(lambda: not speaker.routes(), 120)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await bridge.stop()
    assert max(turns) < MOST
