"""The Unix socket of ``felix-py-cni``."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from felix_py import log
from felix_py.cni.errors import CNIError, Code
from felix_py.cni.plugin import Plugin
from felix_py.cni.protocol import HANDED_BACK, Answer, Call, ProtocolError, read_call
from felix_py.cni.spool import Spool
from felix_py.cni.types import Before, Command, parse_request, version_of
from felix_py.metrics import Metrics

_BACKLOG = 512
_MOST_CALLS = 512
"""Concurrent calls: the remaining file descriptors are reserved for enforcement."""
_MOST_ADDS = 448
"""Of these; the others are for DELs, which free what ADDs wait for, and for all that a runtime asks to see."""
_READ_TIMEOUT = 10.0
"""Seconds for a call to arrive: the client has all of it before it connects."""
_REST = 1.0
"""Seconds without taking calls after one could not be taken."""

_NO_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

LOOK = 5.0
"""Seconds between two looks whether the socket can still be found."""

CALLS = 2.0
"""Seconds for calls under way to finish when the server stops."""

UNDO = 1.0
"""Seconds for unfinished calls to undo their steps."""

_STOPPING = CNIError(Code.TRY_AGAIN, "the agent is stopping")
_TOO_MANY = CNIError(Code.TRY_AGAIN, f"{_MOST_ADDS} pods of this node are being connected already")


class SocketInUse(Exception):
    """Another agent listens on the socket."""


class CNIServer:
    """Answers calls on ``path``. No call, however malformed, stops the server."""

    def __init__(self, plugin: Plugin, path: Path, metrics: Metrics) -> None:
        self._plugin = plugin
        self._path = path
        self._metrics = metrics
        self._log = log.get("cni")
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._full = False
        """Whether no call is taken until one has ended."""
        self._looking: asyncio.TimerHandle | None = None
        self._adds = 0
        self._spool = Spool(path.parent / "spool", self.answer, plugin.expect_del, self._begin, plugin.present)

    async def start(self) -> None:
        """Listen; then process the spool in the background.

        Raises:
            SocketInUse: another agent runs on this node.
            OSError: the socket cannot be made.
        """
        self._listen()
        self._look_later()

    def _listen(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        listening, before = listen_at(self._path, _BACKLOG), self._listening
        self._spool.start()
        self._listening = listening
        if before is not None:
            self._leave(before)
        if not self._full:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _leave(self, listening: socket.socket) -> None:
        self._accept(listening)  # else those in the backlog would be cut off
        asyncio.get_running_loop().remove_reader(listening)
        listening.close()

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _look(self) -> None:
        """Listen anew where somebody has removed the socket. What is there instead is another agent's."""
        if not os.path.lexists(self._path):
            try:
                self._listen()
            except (OSError, SocketInUse) as error:
                self._log.error("somebody has removed the CNI socket, and it cannot be made", reason=str(error))
            else:
                self._log.warning("somebody has removed the CNI socket: it is made again", path=str(self._path))
        self._look_later()

    async def stop(self, calls: float = CALLS, undo: float = UNDO) -> None:
        """Accept no more calls, and let those under way finish, so that nothing half-made is left behind.

        A call unfinished after ``calls`` seconds is cancelled: it undoes its steps, and its client is told to try
        again; that of an ADD does so by itself. A call that needs longer than ``undo`` seconds for that is left
        alone; call this method again once the operation that it waits for has ended.
        """
        if self._listening is not None:
            if self._looking is not None:
                self._looking.cancel()
            self._leave(self._listening)
            self._listening = None
            self._spool.stop()
            self._path.unlink(missing_ok=True)
            await self._under_way(calls)
            for task in self._tasks:
                task.cancel()
        await self._under_way(undo)

    async def _under_way(self, seconds: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._full and self._listening is not None:
            self._full = False
            asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    def _accept(self, listening: socket.socket) -> None:
        """Take the calls that wait. No asyncio streams: they would take a tenth of an ADD's CPU time."""
        with suppress(BlockingIOError):
            for _ in range(_BACKLOG):
                if len(self._tasks) >= _MOST_CALLS:
                    # The others wait in the backlog: a client that is turned away would spool its DEL.
                    self._full = True
                    asyncio.get_running_loop().remove_reader(listening)
                    return
                try:
                    connection, _peer = listening.accept()
                except ConnectionAbortedError:
                    continue
                except OSError as error:
                    if error.errno not in _NO_MEANS:
                        raise
                    self._rest(listening, error)
                    return
                connection.setblocking(False)
                self._begin(self._serve(connection))

    def _rest(self, listening: socket.socket, error: OSError) -> None:
        """Without descriptors or memory for a connection it stays in the backlog: no use to try without end."""
        self._log.warning("cannot take a CNI call yet", reason=str(error))
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(_REST, self._take_up, listening)

    def _take_up(self, listening: socket.socket) -> None:
        if self._listening is listening:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            answer = await self._called(connection)
            with suppress(OSError):  # the runtime has killed the client; it will call DEL
                async with asyncio.timeout(_READ_TIMEOUT):
                    await asyncio.get_running_loop().sock_sendall(connection, answer.encode())

    async def _called(self, connection: socket.socket) -> Answer:
        try:
            async with asyncio.timeout(_READ_TIMEOUT):
                call = await read_call(connection)
            return await self._answer_or_stop(call)
        except ProtocolError as error:
            self._log.warning("not a CNI call", reason=str(error))
            return Answer(1, CNIError(Code.DECODING, str(error)).encode(""))
        except OSError as error:  # includes TimeoutError
            self._log.warning("a CNI call did not arrive", reason=str(error) or "timed out")
            return Answer(1, CNIError(Code.IO, "the call did not arrive").encode(""))
        except Exception as error:
            self._log.exception("a CNI call cannot be read by a defect")
            return Answer(1, CNIError(Code.INTERNAL, f"internal error: {type(error).__name__}").encode(""))

    async def _answer_or_stop(self, call: Call) -> Answer:
        adding = call.environment.get("CNI_COMMAND") == Command.ADD
        if adding and self._adds >= _MOST_ADDS:
            self._log.warning("an ADD is refused: too many others are under way", others=self._adds)
            return Answer(1, _TOO_MANY.encode(version_of(call)))
        self._adds += adding
        try:
            return await self.answer(call)
        except asyncio.CancelledError:  # by stop(), or by an operation that it waited for
            return Answer(HANDED_BACK if adding else 1, _STOPPING.encode(version_of(call)))
        finally:
            self._adds -= adding

    async def answer(self, call: Call, before: Before | None = None) -> Answer:
        """Execute a call; never raises because of its content. ``before``: of a spooled one, see Request."""
        started = time.monotonic()
        command = call.environment.get("CNI_COMMAND", "")
        bound = self._log.bind(command=command, container=call.environment.get("CNI_CONTAINERID", ""))
        try:
            request = replace(parse_request(call), before=before)
            if {"K8S_POD_NAMESPACE", "K8S_POD_NAME"} <= request.args.keys():
                bound = bound.bind(pod=f"{request.args['K8S_POD_NAMESPACE']}/{request.args['K8S_POD_NAME']}")
            if request.command is Command.ADD:
                await self._spool.under_way.wait()  # a DEL of the same interface may be among them
            result = await self._plugin.run(request)
        except CNIError as error:
            bound.warning("CNI call failed", code=int(error.code), reason=error.message, details=error.details)
            answer = Answer(1, error.encode(version_of(call)))
        except Exception as error:
            bound.exception("CNI call failed by a defect")
            defect = CNIError(Code.INTERNAL, f"internal error: {type(error).__name__}: {error}")
            answer = Answer(1, defect.encode(version_of(call)))
        else:
            taken = round((time.monotonic() - started) * 1000, 2)
            done = partial(bound.info, "CNI call done", milliseconds=taken)
            asyncio.get_running_loop().call_soon(done)  # once the client has its answer
            answer = Answer(0, result.encode(request.version) if result is not None else b"")
        label = command if command in set(Command) else "unknown"
        outcome = "error" if answer.code else "ok"
        self._metrics.cni_seconds.labels(label, outcome).observe(time.monotonic() - started)
        return answer


def listen_at(path: Path, backlog: int) -> socket.socket:
    """A listening socket for root only, in place of one left by a crashed agent.

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
