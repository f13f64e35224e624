"""Streams of numbered packets between places of a cluster: how many came, and how many did not.

Sockets are made in the network namespaces of pods and machines and stay there, so one thread sends and receives
all. Everything is asked and answered, so a packet that is lost in either direction is missed:

- ``udp``: datagrams, from a new port every hundred, so that there are always new flows.
- ``tcp``: one connection for as long as the stream lasts.
- ``connect``: a connection for each number.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lab.namespaces import inside

Kind = Literal["udp", "tcp", "connect"]
PORT = 7000
_NUMBER = struct.Struct("!II")
_FLOW = 100
_PATIENCE = 10.0
"""Seconds that an answer may take: machines under load are slow, and slow is not lost."""

_LATE = 1.0
"""Seconds after which an answer is told of."""

_TURN = 0.1
_BUFFER = 1 << 20
_ECHOED = 1 << 12
_AT_ONCE = 256
"""Datagrams of one socket in one turn of the loop, at most."""


@dataclass(frozen=True)
class Place:
    """Where a socket can be: a pod's or a machine's network namespace."""

    name: str
    netns: Path


@dataclass
class Stream:
    """One stream and its counts.

    ``forbidden``: nothing may come through. ``again``: segments that TCP has sent once more because they were
    lost, SYN among them. ``failed``: errors of connections that were refused or reset, or took too long.
    """

    kind: Kind
    source: Place
    host: str
    port: int
    to: str
    forbidden: bool = False
    sent: int = 0
    answered: int = 0
    again: int = 0
    slowest: float = 0.0
    failed: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    missed_at: list[float] = field(default_factory=list)

    def answer(self, asked: float, began: float) -> None:
        """Count an answer that has just come, to what was asked then (both of the monotonic clock)."""
        seconds = time.monotonic() - asked
        self.answered += 1
        self.slowest = max(self.slowest, seconds)
        if seconds > _LATE:
            self.late.append(f"asked at {asked - began:.2f} s, answered {seconds:.2f} s later")

    @property
    def lost(self) -> int:
        """Packets that have had no answer, or only a later copy had one."""
        return self.sent - self.answered + self.again

    @property
    def well(self) -> bool:
        """Everything arrived, or nothing where nothing may."""
        if self.forbidden:
            return self.sent > 0 and not self.answered
        return self.sent > 0 and not (self.lost or self.failed)

    def __str__(self) -> str:
        what = f"{self.kind:7} {self.source.name} -> {self.to}"
        found = f"{self.sent:6} sent {self.answered:6} answered {self.lost:4} lost {len(self.failed):3} failed"
        missed = (
            f", missed at {', '.join(f'{when:.1f}' for when in self.missed_at[:5])} s" if self.missed_at else ""
        )
        errors = f" ({', '.join(sorted(set(self.failed)))})" if self.failed else ""
        kept = " (forbidden)" if self.forbidden else ""
        return f"{what:44} {found}, slowest {1000 * self.slowest:5.0f} ms{missed}{errors}{kept}"


class Traffic:
    """All streams of a test, on a loop in a thread; use it in a ``with``. Sending begins there and goes on until
    :meth:`stop`."""

    def __init__(self, streams: Sequence[Stream], servers: Sequence[Place], rate: float = 1000.0) -> None:
        """``servers`` are where :data:`PORT` echoes; ``rate`` is of all streams together, in packets a second."""
        self.streams = streams
        self._servers = servers
        self._pause = len(streams) / rate
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._began = self._ended = 0.0
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._stood: list[str] = []

    def __enter__(self) -> Traffic:
        self._thread.start()
        if not self._ready.wait(60) or self._failure:
            self.stop()
            raise RuntimeError("the streams did not begin") from self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def seconds(self) -> float:
        """Since the streams began."""
        return time.monotonic() - self._began

    @property
    def sending(self) -> float:
        """Seconds for which they have been sent."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def rate(self) -> float:
        """Packets a second that were sent."""
        return sum(stream.sent for stream in self.streams) / self.sending

    def stop(self) -> Sequence[Stream]:
        """End, after the last answers; the streams' counts are final then. May be repeated."""
        if self._thread.is_alive():
            self._ended = self._ended or time.monotonic()
            self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(4 * _PATIENCE)
        if self._failure:
            raise RuntimeError("the streams broke down") from self._failure
        return self.streams

    def report(self) -> str:
        """Counts for people: all together, by kind, and each stream that is not well."""
        allowed = [stream for stream in self.streams if not stream.forbidden]
        lines = [f"{self.sending:.0f} s, {self.rate:.0f} a second, {_summary(allowed)}"]
        kinds = dict.fromkeys(stream.kind for stream in allowed)
        lines += [f"  {kind:10}{_summary([one for one in allowed if one.kind == kind])}" for kind in kinds]
        forbidden = [stream for stream in self.streams if stream.forbidden]
        through = sum(stream.answered for stream in forbidden)
        lines.append(f"  forbidden: {sum(stream.sent for stream in forbidden)} sent, {through} came through")
        lines += [f"  NOT WELL: {stream}" for stream in self.streams if not stream.well]
        lines += [
            f"  late: {stream.source.name} -> {stream.to}: {late}"
            for stream in self.streams
            for late in stream.late[:5]
        ]
        lines += [
            f"  this program stood still {stood}: an answer on the way then is late" for stood in self._stood[:5]
        ]
        return "\n".join(lines)

    # --- in the thread -------------------------------------------------------------------------------

    async def _run(self) -> None:
        servers: list[asyncio.Server] = []
        doors: list[socket.socket] = []
        self._loop = asyncio.get_running_loop()
        try:
            for place in self._servers:
                with inside(place.netns):
                    both = socket.create_server(
                        ("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True, backlog=500
                    )
                    door = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                servers.append(await asyncio.start_server(_echo, sock=both))
                door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                door.bind(("::", PORT))
                self._loop.add_reader(door, _echo_datagrams, door)
                doors.append(door)
            self._began = time.monotonic()
            work = [
                self._loop.create_task(self._stream(place, stream)) for place, stream in enumerate(self.streams)
            ]
            self._ready.set()
            async with asyncio.TaskGroup() as group:
                standing = group.create_task(self._note_standing())
                await asyncio.gather(*work)
                standing.cancel()
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()
            for door in doors:
                self._loop.remove_reader(door)
                door.close()
            for server in servers:
                server.close()

    async def _note_standing(self) -> None:
        """Note when the loop did not turn.

        One thread sends and receives all: nothing is sent meanwhile, and the packet or two on the way are late.
        """
        while True:
            before = time.monotonic()
            await asyncio.sleep(_TURN)
            if (seconds := time.monotonic() - before - _TURN) > _LATE / 2:
                self._stood.append(f"at {before - self._began:.2f} s for {seconds:.2f} s")

    def _stream(self, place: int, stream: Stream) -> Coroutine[Any, Any, None]:
        run = {"udp": self._udp, "tcp": self._tcp, "connect": self._connect}[stream.kind]
        return run(stream, self._pause * place / len(self.streams))

    async def _tick(self, due: float) -> bool:
        """Wait until a point in time; False: it is time to end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), max(0.0, due - time.monotonic()))
        return not self._ending.is_set()

    async def _udp(self, stream: Stream, offset: float) -> None:
        due = self._began + offset
        open_sockets: list[_Asker] = []
        while await self._tick(due):
            if stream.sent % _FLOW == 0:
                with inside(stream.source.netns):
                    asker = socket.socket(_family(stream.host), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                asker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                await self._loop.sock_connect(asker, (stream.host, stream.port))
                open_sockets.append(_Asker(stream, self._began, asker))
            open_sockets[-1].ask(stream.sent)
            stream.sent += 1
            # After a stall of this program what was missed is not sent at once: that would be a flood of its own.
            due = max(due + self._pause, time.monotonic() - self._pause)
        await self._settle(stream, open_sockets)

    async def _settle(self, stream: Stream, askers: Sequence[_Asker]) -> None:
        deadline = time.monotonic() + (_PATIENCE if not stream.forbidden else 2.0)
        while any(asker.waiting for asker in askers) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for asker in askers:
            stream.missed_at += [when - self._began for when in asker.waiting.values()]
            asker.close()

    async def _tcp(self, stream: Stream, offset: float) -> None:
        due = self._began + offset
        sent: dict[int, float] = {}
        try:
            reader, writer = await self._open(stream)
        except OSError as error:
            stream.sent += 1
            stream.failed.append(_words(error))
            return

        async def read() -> None:
            while True:
                number = _NUMBER.unpack(await reader.readexactly(_NUMBER.size))[1]
                stream.answer(sent.pop(number), self._began)

        reading = self._loop.create_task(read())
        while await self._tick(due) and not reading.done():
            sent[stream.sent] = time.monotonic()
            writer.write(_NUMBER.pack(0, stream.sent))
            stream.sent += 1
            due = max(due + self._pause, time.monotonic() - self._pause)
        deadline = time.monotonic() + _PATIENCE
        while sent and not reading.done() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if reading.done():
            stream.failed.append(_words(reading.exception()))
        reading.cancel()
        stream.missed_at = [when - self._began for when in sent.values()]
        stream.again = _sent_again(writer)
        writer.close()

    async def _connect(self, stream: Stream, offset: float) -> None:
        due = self._began + offset
        tries: set[asyncio.Task[None]] = set()
        while await self._tick(due):
            task = self._loop.create_task(self._connect_once(stream, stream.sent))
            tries.add(task)
            task.add_done_callback(tries.discard)
            stream.sent += 1
            due = max(due + self._pause, time.monotonic() - self._pause)
        await asyncio.gather(*tries)

    async def _connect_once(self, stream: Stream, number: int) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(_PATIENCE if not stream.forbidden else 2.0):
                reader, writer = await self._open(stream)
                try:
                    writer.write(_NUMBER.pack(0, number))
                    await reader.readexactly(_NUMBER.size)
                    stream.again += _sent_again(writer)
                finally:
                    writer.close()
        except (OSError, EOFError) as error:
            if not stream.forbidden:
                stream.failed.append(_words(error))
                stream.missed_at.append(began - self._began)
            return
        stream.answer(began, self._began)

    async def _open(self, stream: Stream) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with inside(stream.source.netns):
            end = socket.socket(_family(stream.host), socket.SOCK_STREAM)
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.sock_connect(end, (stream.host, stream.port))
        except BaseException:
            end.close()
            raise
        return await asyncio.open_connection(sock=end)


class _Asker:
    """One end of a flow of datagrams; belongs to the running loop.

    Not asyncio's own endpoint: that reads one datagram in each turn of the loop, and where turns are long they
    queue up for many seconds in the socket.
    """

    def __init__(self, stream: Stream, began: float, sock: socket.socket) -> None:
        self.waiting: dict[int, float] = {}
        self._stream = stream
        self._began = began
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._receive)

    def ask(self, number: int) -> None:
        self.waiting[number] = time.monotonic()
        try:
            self._socket.send(_NUMBER.pack(0, number))
        except OSError as error:
            self._failed(error)

    def _receive(self) -> None:
        try:
            for _ in range(_AT_ONCE):
                asked = self.waiting.pop(_NUMBER.unpack(self._socket.recv(_ECHOED))[1], None)
                if asked is not None:
                    self._stream.answer(asked, self._began)
        except BlockingIOError:
            pass
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._stream.forbidden:
            self._stream.failed.append(_words(error))

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()


def _echo_datagrams(door: socket.socket) -> None:
    for _ in range(_AT_ONCE):
        try:
            data, address = door.recvfrom(_ECHOED)
        except BlockingIOError:
            return
        with suppress(OSError):
            door.sendto(data, address)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_ECHOED):
            writer.write(data)
            await writer.drain()
    writer.close()


def _summary(streams: Sequence[Stream]) -> str:
    sent, answered = sum(stream.sent for stream in streams), sum(stream.answered for stream in streams)
    lost, failed = sum(stream.lost for stream in streams), sum(len(stream.failed) for stream in streams)
    slowest = max(stream.slowest for stream in streams)
    return (
        f"{len(streams)} streams: {sent} sent, {answered} answered, {lost} lost, {failed} failed,"
        f" slowest answer {1000 * slowest:.0f} ms"
    )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _words(error: BaseException | None) -> str:
    return type(error).__name__ if isinstance(error, TimeoutError) or not str(error) else str(error)


def _sent_again(writer: asyncio.StreamWriter) -> int:
    """Segments that TCP sent again because they were lost: without those of which the other end had both copies.

    linux/tcp.h, struct tcp_info: tcpi_total_retrans and, from 4.19 on, tcpi_dsack_dups.
    """
    found = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 224)
    retransmitted: int = struct.unpack_from("=I", found, 100)[0]
    duplicates: int = struct.unpack_from("=I", found, 216)[0] if len(found) >= 220 else 0
    return max(0, retransmitted - duplicates)
