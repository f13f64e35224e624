"""Who connects to the agent's HTTP, and says nothing, or does not listen, keeps nobody else out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from felix_py.observe.gate import Gate, GuardedRunner, Limits

LONG = 60.0
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


class Served:
    """An application behind a gate, on a free port."""

    def __init__(self, limits: Limits) -> None:
        self.gate = Gate(limits)
        self.streaming = asyncio.Event()
        app = web.Application(middlewares=[self.gate.middleware()])
        app.router.add_get("/quick", self._quick)
        app.router.add_get("/stream", self._stream)
        self.runner = GuardedRunner(
            app, self.gate, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        self._sockets: list[socket.socket] = []
        self.port = 0

    async def _quick(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first\n")
        self.streaming.set()
        await asyncio.sleep(LONG)
        return response

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def get(self, path: bytes = b"quick") -> bytes:
        reader, writer = await self.connect()
        writer.write(GET.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost") % path)
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def served(limits: Limits) -> AsyncIterator[Served]:
    server = Served(limits)
    await server.runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    await web.SockSite(server.runner, listener).start()
    try:
        yield server
    finally:
        await server.runner.cleanup()


async def test_a_full_house_of_silent_ones_makes_room_for_who_speaks() -> None:
    async with served(Limits(connections=8, arrive=LONG)) as server:
        silent = [await server.connect() for _ in range(100)]
        for _ in range(20):
            assert (await server.get()).endswith(b"ok\n")
        assert len(server.gate) <= 8
        gone = [reader for reader, _ in silent[:90]]
        for reader in gone:
            with_reset = await asyncio.gather(reader.read(), return_exceptions=True)
            assert with_reset[0] == b"" or isinstance(with_reset[0], ConnectionResetError)
        for _, writer in silent:
            writer.close()


async def test_who_is_slow_to_ask_is_cut_off_whatever_it_trickles() -> None:
    async with served(Limits(arrive=0.5)) as server:
        reader, writer = await server.connect()
        try:
            for letter in GET * 20:
                writer.write(bytes([letter])[:1] if letter not in b"\r\n" else b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
                if reader.at_eof():
                    break
        except ConnectionError:
            pass
        else:
            assert reader.at_eof()
        assert len(server.gate) == 0
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def test_an_answer_has_its_time_and_a_stream_has_none() -> None:
    for answer, cut in ((0.3, True), (None, False)):
        async with served(Limits(connections=2, arrive=LONG, answer=answer)) as server:
            reader, writer = await server.connect()
            writer.write(GET % b"stream")
            await server.streaming.wait()
            await reader.readuntil(b"first\n")
            if cut:
                assert await asyncio.gather(reader.read(), return_exceptions=True)
                assert len(server.gate) == 0
            else:  # not even where others want its place
                for _ in range(10):
                    assert (await server.get()).endswith(b"ok\n")
                assert len(server.gate) == 1
                assert not reader.at_eof()
            writer.close()


async def test_where_all_are_at_work_the_next_one_is_refused() -> None:
    async with served(Limits(connections=1, answer=None)) as server:
        reader, writer = await server.connect()
        writer.write(GET % b"stream")
        await reader.readuntil(b"first\n")
        refused = await asyncio.gather(server.get(), return_exceptions=True)
        assert refused[0] == b"" or isinstance(refused[0], ConnectionError)
        writer.close()
