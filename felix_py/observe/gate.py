"""Limits of the connections to the agent's HTTP sockets: their number, and their time.

Any local user may connect to the health address. Without limits, silent connections would use up the process's
descriptors, so that no netlink socket could be opened and no CNI call accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """``connections`` at a time. Seconds: for a request to ``arrive`` since the connection's beginning or the
    last answer; for its ``answer`` to be made (None: without limit)."""

    connections: int = 64
    arrive: float = 10.0
    answer: float | None = 30.0


class Gate:
    """The connections of one server. When it is full, the oldest that is not being answered makes room."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[asyncio.BaseTransport, _Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, transport: asyncio.BaseTransport, connection: _Connection) -> bool:
        """Admit a connection, making room if necessary; returns False if that is impossible."""
        if len(self._open) >= self.limits.connections:
            silent = next((c for c in self._open.values() if not c.answering), None)
            if silent is None:
                return False
            silent.cut()
        self._open[transport] = connection
        return True

    def leave(self, transport: asyncio.BaseTransport) -> None:
        """Remove a closed connection."""
        self._open.pop(transport, None)

    def middleware(self) -> Any:
        """Middleware for the application whose server this guards."""

        @web.middleware
        async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._open.get(cast("asyncio.BaseTransport", request.transport))
            if connection is None:
                return await handler(request)
            connection.begin()
            try:
                return await handler(request)
            finally:
                connection.end()

        return timed


class _Connection(asyncio.Protocol):
    """Wraps aiohttp's protocol with the time limits."""

    def __init__(self, inner: asyncio.Protocol, gate: Gate) -> None:
        self._inner = inner
        self._gate = gate
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._entered = False
        self.answering = False

    def begin(self) -> None:
        """A request has arrived."""
        self.answering = True
        self._within(self._gate.limits.answer)

    def end(self) -> None:
        """Its answer is made; sending it counts for the next request's time."""
        self.answering = False
        self._within(self._gate.limits.arrive)

    def cut(self) -> None:
        """Close at once, without sending buffered data."""
        if self._transport is not None:
            self._gate.leave(self._transport)
            self._transport.abort()

    def _within(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self.cut) if seconds is not None else None

    # --- asyncio.Protocol ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._entered = self._gate.enter(transport, self)
        if not self._entered:
            self._transport.abort()
            return
        self._within(self._gate.limits.arrive)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._within(None)
        if self._transport is not None:
            self._gate.leave(self._transport)
        if self._entered:
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._entered:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._entered else None

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class GuardedRunner(web.AppRunner):
    """An :class:`aiohttp.web.AppRunner` whose connections pass a gate."""

    def __init__(self, app: web.Application, gate: Gate, **options: Any) -> None:
        super().__init__(app, **options)
        self._gate = gate

    @property
    def server(self) -> Any:
        """The factory of connections' protocols."""
        inner = super().server
        return None if inner is None else lambda: _Connection(inner(), self._gate)
