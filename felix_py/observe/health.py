"""The agent's HTTP server: liveness, readiness and metrics for all local users; its state for a group."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from felix_py.observe.gate import Gate, GuardedRunner, Limits
from felix_py.observe.listener import BACKLOG

Status = dict[str, Any]

Parts = Mapping[str, str | None]
"""What must be well for a probe to succeed: by name, the reason why it is not, or None."""

_SHARE = 10
"""Metrics that took t seconds to render, which blocks the event loop, are served from a cache for 10 t."""

_FRESH_MOST = 5.0


class HealthServer:
    """``/livez`` (200 while the event loop turns; also called ``/healthz``), ``/metrics``, and ``/readyz`` (503
    and the reason while a part is not well).

    Both probes know ``?verbose`` and ``?exclude=PART`` as those of kube-apiserver do. A loop that stands still
    answers nothing, and :mod:`felix_py.observe.watchdog` ends the process.

    ``/status`` and further routes, which show who talks to whom, are only on the private socket.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        parts: Callable[[], Parts],
        status: Callable[[], Status],
        refresh: Callable[[], Awaitable[None]],
        routes: Iterable[web.RouteDef] = (),
    ) -> None:
        """``parts`` are those of ``/readyz``. ``refresh`` updates the metrics before they are read. ``routes``
        are further private ones.
        """
        self._registry = registry
        self._parts = parts
        self._status = status
        self._refresh = refresh
        self._rendered = b""
        self._fresh_until = 0.0
        self._public = self._served(Limits(), ())
        # Its routes may stream without end, and limit their clients themselves.
        self._private_site: web.SockSite | None = None
        self._private = self._served(Limits(answer=None), [web.get("/status", self._get_status), *routes])

    def _served(self, limits: Limits, routes: Iterable[web.RouteDef]) -> GuardedRunner:
        gate = Gate(limits)
        app = web.Application(middlewares=[gate.middleware()])
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/healthz", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_routes(routes)
        # Handlers are cancelled when the client is gone, since they may stream without end.
        return GuardedRunner(app, gate, access_log=None, shutdown_timeout=1, handler_cancellation=True)

    async def start(self, public: socket.socket | None = None, private: socket.socket | None = None) -> None:
        """Serve listening sockets (:mod:`felix_py.observe.listener`), with the connections in their backlogs."""
        for runner, listener in ((self._public, public), (self._private, private)):
            await runner.setup()
            if listener is not None:
                site = web.SockSite(runner, listener, backlog=BACKLOG)
                await site.start()
                if runner is self._private:
                    self._private_site = site

    async def serve_instead(self, private: socket.socket) -> None:
        """Serve another private socket in place of the one that nobody finds any more; connections stay."""
        if self._private_site is not None:
            await self._private_site.stop()
        self._private_site = web.SockSite(self._private, private, backlog=BACKLOG)
        await self._private_site.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._public.cleanup()
        await self._private.cleanup()

    async def _livez(self, request: web.Request) -> web.Response:
        return _probe("livez", {"loop": None}, request)

    async def _readyz(self, request: web.Request) -> web.Response:
        return _probe("readyz", self._parts(), request)

    async def _metrics(self, _request: web.Request) -> web.Response:
        """Any local user may ask, at any rate: the time that rendering took decides how long it is cached."""
        if time.monotonic() >= self._fresh_until:
            await self._refresh()
        if time.monotonic() >= self._fresh_until:  # no other request has rendered them meanwhile
            started = time.monotonic()
            self._rendered = generate_latest(self._registry)
            ended = time.monotonic()
            self._fresh_until = ended + min(_FRESH_MOST, _SHARE * (ended - started))
        return web.Response(body=self._rendered, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _get_status(self, _request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._status()), content_type="application/json")


def _probe(name: str, parts: Parts, request: web.Request) -> web.Response:
    excluded = request.query.getall("exclude", [])
    reason = next((why for part, why in parts.items() if why and part not in excluded), None)
    lines = _verbose(name, parts, excluded) if "verbose" in request.query else [reason or "ok"]
    return web.Response(text="\n".join(lines) + "\n", status=503 if reason else 200)


def _verbose(name: str, parts: Parts, excluded: Collection[str]) -> list[str]:
    """Lines like those of kube-apiserver (k8s.io/apiserver, server/healthz), but with the reason."""
    lines = []
    failed = False
    for part, reason in parts.items():
        if part in excluded:
            lines.append(f"[+]{part} excluded: ok")
        elif reason:
            failed = True
            lines.append(f"[-]{part} failed: {' '.join(reason.split())}")
        else:
            lines.append(f"[+]{part} ok")
    if unknown := [one for one in excluded if one not in parts]:
        quoted = ", ".join(f'"{" ".join(one[:40].split())}"' for one in unknown[:10])
        lines.append(f"warn: some health checks cannot be excluded: no matches for {quoted}")
    return [*lines, f"{name} check {'failed' if failed else 'passed'}"]
