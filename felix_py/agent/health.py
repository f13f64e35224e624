"""The health endpoint: liveness, readiness, metrics, and the agent's state for people and scripts."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Status = dict[str, Any]


class HealthServer:
    """``/healthz`` (200 while the process works), ``/readyz`` (503 and the reason until in-sync), ``/metrics``,
    ``/status`` and ``/flows`` (JSON)."""

    def __init__(
        self,
        registry: CollectorRegistry,
        unready: Callable[[], str | None],
        status: Callable[[], Status],
        refresh: Callable[[], Awaitable[None]],
        routes: Iterable[web.RouteDef] = (),
    ) -> None:
        """``refresh`` brings the metrics up to date before they are read; ``routes`` are further ones."""
        self._registry = registry
        self._unready = unready
        self._status = status
        self._refresh = refresh
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/status", self._get_status)
        app.router.add_routes(routes)
        # Cancelled as soon as its client is gone: a handler may stream without end.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1, handler_cancellation=True)

    async def start(self, listener: socket.socket) -> None:
        """Answer what comes in by a listening socket (:func:`felix_py.agent.listener.listen`), and has come
        already."""
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reason = self._unready()
        return web.Response(text=f"{reason or 'ok'}\n", status=503 if reason else 200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        await self._refresh()
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.json_response(self._status())
