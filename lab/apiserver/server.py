"""The HTTP server: routes, authentication, answers."""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from aiohttp import web

from lab.apiserver import discovery, openapi
from lab.apiserver import errors as api
from lab.apiserver.handlers import Handlers
from lab.apiserver.instance import Instance
from lab.apiserver.kinds import Obj
from lab.apiserver.kubeconfig import write_kubeconfig
from lab.apiserver.refused import known_only
from lab.apiserver.requests import split_path
from lab.apiserver.responses import json_response
from lab.apiserver.watch import Hub

log = logging.getLogger(__name__)

_OPEN_PATHS = frozenset({"/healthz", "/livez", "/readyz", "/version"})
_V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_V2_PROTOBUF_ANSWER = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"  # "@" is no valid media type
_MAX_BODY = 3 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """How to serve. ``token`` empty: everybody may; times in seconds; ``journal``: where objects are kept.

    ``lab``: it is a lab's, and what nothing in a lab acts on is refused (see :mod:`refused`).
    """

    token: str = ""
    service_cidrs: Sequence[str] = ("10.96.0.0/16",)
    log_size: int = 20_000
    bookmark_interval: float = 30.0
    journal: Path | None = None
    lab: bool = False
    tls: ssl.SSLContext | None = field(default=None, compare=False)


class ApiServer:
    """A Kubernetes API server in memory.

    ``async with ApiServer() as server:`` serves on a free loopback port at ``server.url``; further addresses and
    sockets with :meth:`listen` and :meth:`serve_on`.
    """

    def __init__(self, options: Options = Options()) -> None:
        self.options = options
        # The counter starts at the clock, so that a restarted server never repeats a version it gave out.
        self.instance = Instance(time.time_ns() // 1000, options.log_size, options.service_cidrs, options.journal)
        self._hub = Hub(self.instance.store)
        self.instance.registry.on_removed = self._hub.wake
        self._handlers = Handlers(self.instance, self._hub, options.bookmark_interval, lab=options.lab)
        if options.lab:
            for resource in known_only():
                self.instance.registry.add(resource)
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        if not self.url:
            await self.listen("127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Get ready to serve; then call :meth:`listen` or :meth:`serve_on`."""
        app = web.Application(middlewares=[self._errors, self._authenticate], client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._route)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=2.0)
        await self._runner.setup()

    async def listen(self, host: str, port: int) -> str:
        """Serve on an address (port 0: a free one) and return the URL."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
        return await self.serve_on(listener)

    async def serve_on(self, listener: socket.socket) -> str:
        """Serve on a bound, listening socket, which from now on belongs to the server; return the URL."""
        if self._runner is None:
            raise RuntimeError("start() comes first")
        listener.setblocking(False)
        await web.SockSite(self._runner, listener, ssl_context=self.options.tls, backlog=512).start()
        host, port = listener.getsockname()[:2]
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
        url = f"{'https' if self.options.tls else 'http'}://{shown}:{port}"
        self.url = self.url or url
        return url

    async def stop(self) -> None:
        """End watches cleanly and close all sockets."""
        self._handlers.stop()
        self._hub.wake_all()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def write_kubeconfig(self, path: Path, ca: Path | None = None) -> None:
        """A kubeconfig for the first address."""
        write_kubeconfig(path, self.url, self.options.token, ca)

    @web.middleware
    async def _errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Whatever goes wrong becomes a Status document."""
        try:
            return await handler(request)
        except api.ApiError as error:
            return _status(error)
        except web.HTTPRequestEntityTooLarge:
            message = f"Request entity too large: limit is {_MAX_BODY}"
            return _status(api.ApiError(413, "RequestEntityTooLarge", message))
        except web.HTTPException as error:
            return _status(api.ApiError(error.status, "", error.reason))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path_qs)
            return _status(api.ApiError(500, "InternalError", f"Internal error occurred: {error!r}"))

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        allowed = not self.options.token or hmac.compare_digest(given.encode(), self.options.token.encode())
        if not allowed and request.path not in _OPEN_PATHS:
            raise api.ApiError(401, "Unauthorized", "Unauthorized")
        return await handler(request)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path = split_path(request.path)
        if path is not None and path.parts:
            return await self._handlers.serve(request, path)
        if request.path in {"/healthz", "/livez", "/readyz"}:
            return web.Response(text="ok")
        if request.path == "/openapi/v2" and _V2_PROTOBUF in request.headers.get("Accept", ""):
            body = openapi.v2_protobuf(self.instance.registry)
            return web.Response(body=body, headers={"Content-Type": _V2_PROTOBUF_ANSWER})
        document = self._document(request.path.rstrip("/"), request.host)
        if document is None:
            raise api.no_such_path()
        return json_response(document)

    def _document(self, path: str, host: str) -> Obj | None:
        registry = self.instance.registry
        match path.split("/")[1:]:
            case ["version"]:
                return discovery.version_info()
            case ["api"]:
                return discovery.core_versions(host)
            case ["apis"]:
                return discovery.group_list(registry)
            case ["apis", group]:
                return discovery.group(registry, group)
            case ["api", version]:
                return discovery.resource_list(registry, "", version)
            case ["apis", group, version]:
                return discovery.resource_list(registry, group, version)
            case ["openapi", "v2"]:
                return openapi.v2_document()
            case ["openapi", "v3"]:
                return openapi.index(registry)
            case ["openapi", "v3", "api", version]:
                return openapi.document(registry, "", version)
            case ["openapi", "v3", "apis", group, version]:
                return openapi.document(registry, group, version)
        return None


def _status(error: api.ApiError) -> web.Response:
    return json_response(error.status(), error.code)
