"""The Unix socket that ``felix-py-cni`` talks to, and the spool of calls that came while nobody listened."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from felix_py import log
from felix_py.cni.errors import CNIError, Code
from felix_py.cni.plugin import Plugin
from felix_py.cni.protocol import MOST_FRAME, Answer, Call, ProtocolError, parse_call, read_call
from felix_py.cni.types import Command, parse_request, version_of
from felix_py.metrics import Metrics

_BACKLOG = 512
_MOST_CALLS = 512
"""Calls at a time: descriptors are for what enforces."""
_READ_TIMEOUT = 10.0
"""Seconds for a call to arrive: the client has all of it before it connects."""
_SPOOL_LOCK_TIMEOUT = 5.0

CALLS = 2.0
"""Seconds that calls under way have to come to their end when the server stops."""

UNDO = 1.0
"""Seconds for those that did not to undo what they did."""

_STOPPING = CNIError(Code.TRY_AGAIN, "the agent is stopping")


class SocketInUse(Exception):
    """Another agent answers on the socket."""


class CNIServer:
    """Answers calls on ``path``. No call, however broken, takes the server down."""

    def __init__(self, plugin: Plugin, path: Path, metrics: Metrics) -> None:
        self._plugin = plugin
        self._path = path
        self._metrics = metrics
        self._log = log.get("cni")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; then work off the spool, in the background.

        Raises:
            SocketInUse: another agent runs on this node.
            OSError: the socket cannot be made.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        listening = listen_at(self._path, _BACKLOG)
        self._server = await asyncio.start_unix_server(self._connected, sock=listening)
        self._keep(asyncio.create_task(self._drain_spool()))

    async def stop(self, calls: float = CALLS, undo: float = UNDO) -> None:
        """Take no more calls, and let those under way come to their end: nothing half-made is to be left behind.

        One that has not done so after ``calls`` seconds is cut off: it undoes what it can, and its client is told
        to try again. Whatever needs longer than ``undo`` seconds for that is left alone; call this again when
        what it waits for has ended.
        """
        if self._server is not None:
            self._server.close()
            self._server = None
            self._path.unlink(missing_ok=True)
            await self._under_way(calls)
            for task in self._tasks:
                task.cancel()
        await self._under_way(undo)

    async def _under_way(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= _MOST_CALLS:
            writer.transport.abort()  # the client says "try again", or keeps the call in the spool
            return
        self._keep(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_READ_TIMEOUT):
                call = await read_call(reader)
            answer = await self._answer_or_stop(call)
        except ProtocolError as error:
            self._log.warning("not a CNI call", reason=str(error))
            answer = Answer(1, CNIError(Code.DECODING, str(error)).encode(""))
        except OSError as error:  # a TimeoutError is one, too
            self._log.warning("a CNI call did not arrive", reason=str(error) or "timed out")
            answer = Answer(1, CNIError(Code.IO, "the call did not arrive").encode(""))
        except Exception as error:
            self._log.exception("a CNI call cannot be read by a defect")
            answer = Answer(1, CNIError(Code.INTERNAL, f"internal error: {type(error).__name__}").encode(""))
        with suppress(OSError):  # the runtime gave the client up; it will call DEL
            writer.write(answer.encode())
            async with asyncio.timeout(_READ_TIMEOUT):
                await writer.drain()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _answer_or_stop(self, call: Call) -> Answer:
        try:
            return await self.answer(call)
        except asyncio.CancelledError:  # by stop(), or because what it waited for has ended
            return Answer(1, _STOPPING.encode(version_of(call)))

    async def answer(self, call: Call, *, spooled: bool = False) -> Answer:
        """What the client is to print. Never raises for anything that is in the call.

        ``spooled``: it was made before this agent ran.
        """
        started = time.monotonic()
        command = call.environment.get("CNI_COMMAND", "")
        bound = self._log.bind(command=command, container=call.environment.get("CNI_CONTAINERID", ""))
        try:
            request = replace(parse_request(call), spooled=spooled)
            if {"K8S_POD_NAMESPACE", "K8S_POD_NAME"} <= request.args.keys():
                bound = bound.bind(pod=f"{request.args['K8S_POD_NAMESPACE']}/{request.args['K8S_POD_NAME']}")
            result = await self._plugin.run(request)
        except CNIError as error:
            bound.warning("CNI call failed", code=int(error.code), reason=error.message, details=error.details)
            answer = Answer(1, error.encode(version_of(call)))
        except Exception as error:
            bound.exception("CNI call failed by a defect")
            defect = CNIError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
            answer = Answer(1, defect.encode(version_of(call)))
        else:
            bound.info("CNI call done", milliseconds=round((time.monotonic() - started) * 1000, 2))
            answer = Answer(0, result.encode(request.version) if result is not None else b"")
        label = command if command in set(Command) else "unknown"
        outcome = "error" if answer.code else "ok"
        self._metrics.cni_seconds.labels(label, outcome).observe(time.monotonic() - started)
        return answer

    # --- spool ---------------------------------------------------------------------------------------

    async def _drain_spool(self) -> None:
        """Do what clients were told while no agent ran. A DEL that fails stays for the next start.

        A GC does not: its list of what is in use is that of the moment it was called, and the next agent would
        take away what has come since.
        """
        folder = self._path.parent / "spool"
        try:
            entries = await asyncio.to_thread(_spooled, folder)
        except OSError as error:
            self._log.error("cannot read the CNI spool", folder=str(folder), reason=str(error))
            return
        calls = [(entry, call) for entry in entries if (call := self._take(entry)) is not None]
        for entry, call in calls:
            answer = await self.answer(call, spooled=True)
            if answer.code == 0:
                with suppress(OSError):
                    entry.unlink(missing_ok=True)

    def _take(self, entry: Path) -> Call | None:
        """A spooled call; its file is gone if it must not be done twice."""
        try:
            found = entry.lstat()
            if not stat.S_ISREG(found.st_mode):
                raise ProtocolError("it is no file")
            if found.st_size > MOST_FRAME:
                raise ProtocolError(f"it has {found.st_size} bytes")
            call = parse_call(entry.read_bytes())
            if call.environment.get("CNI_COMMAND") == Command.GC:
                entry.unlink()
            return call
        except ProtocolError as error:
            self._log.error("a file in the CNI spool is not a call", file=str(entry), reason=str(error))
            with suppress(OSError):
                entry.rename(entry.with_name(f".rejected-{entry.name}"))
        except OSError as error:
            self._log.error("cannot use a spooled CNI call", file=str(entry), reason=str(error))
        return None


def listen_at(path: Path, backlog: int) -> socket.socket:
    """A listening socket for root only, in place of what a crashed agent has left.

    Raises:
        SocketInUse: another agent answers there.
        OSError: it cannot be made.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, suppress(ConnectionRefusedError):
                probe.settimeout(1)
                probe.connect(str(path))
                raise SocketInUse(f"{path} is in use: another felix-py agent runs on this node")
            path.unlink()
        mask = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(mask)
        listening.listen(backlog)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _spooled(folder: Path) -> list[Path]:
    """The spooled calls, oldest first.

    A client that found nobody listening holds the folder's shared lock until its call is in the spool. We listen
    already, so once the exclusive lock was ours nothing new can come.
    """
    if not folder.is_dir():
        return []
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _SPOOL_LOCK_TIMEOUT
        while time.monotonic() < deadline:  # a client that hangs must not keep us from the rest
            with suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    finally:
        os.close(fd)
