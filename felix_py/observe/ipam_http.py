"""``/ipam`` of the health server's private socket: who has which address, and releases, which only root may ask
for."""

from __future__ import annotations

import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from felix_py.cni.holdings import Holdings, NotReleased, described

_CREDENTIALS = struct.Struct("=iII")
"""struct ucred (unix(7)): pid, uid, gid."""

_GRACE = 5.0, 600.0
"""Seconds between the two looks of a repair, at least and at most: an ADD takes less."""


class IpamRoutes:
    """Routes for :class:`felix_py.observe.health.HealthServer`."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def routes(self) -> list[web.RouteDef]:
        """Routes to add to an application."""
        return [
            web.get("/ipam", self._show),
            web.get("/ipam/check", self._check),
            web.post("/ipam/fix", _by_root(self._fix)),
            web.post("/ipam/release", _by_root(self._release)),
        ]

    async def _show(self, _request: web.Request) -> web.Response:
        return _json(**self._holdings.show())

    async def _check(self, _request: web.Request) -> web.Response:
        try:
            found = await self._holdings.check()
        except OSError as error:
            return web.Response(status=503, text=f"the interfaces cannot be read: {error}\n")
        notes = self._holdings.not_compared()
        return _json(differences=[finding._asdict() for finding in found], **({"notes": notes} if notes else {}))

    async def _fix(self, request: web.Request) -> web.Response:
        """``?grace=SECONDS`` between the two looks."""
        try:
            grace = float(request.query.get("grace", "30"))
        except ValueError:
            return web.Response(status=400, text="grace is not a number of seconds\n")
        least, most = _GRACE
        if not least <= grace <= most:
            return web.Response(status=400, text=f"grace must be {least:g} to {most:g} seconds\n")
        try:
            released = await self._holdings.fix(grace)
        except OSError as error:
            return web.Response(status=503, text=f"the interfaces cannot be read: {error}\n")
        return _json(released=[described(lease) for lease in released])

    async def _release(self, request: web.Request) -> web.Response:
        """``?address=ADDRESS``, and ``&force=1``: also while its interface exists, which is deleted."""
        address = request.query.get("address", "")
        try:
            lease = await self._holdings.release(address, force=request.query.get("force") == "1")
        except ValueError:
            return web.Response(status=400, text=f"{address[:80]!r} is not an address\n")
        except NotReleased as error:
            return web.Response(status=409, text=f"{error}\n")
        return _json(released=[described(lease)])


def _by_root(
    handler: Callable[[web.Request], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Refuse other users than root: the socket may be a group's."""

    async def guarded(request: web.Request) -> web.Response:
        peer = request.transport.get_extra_info("socket") if request.transport else None
        if peer is None or peer.family != socket.AF_UNIX:
            return web.Response(status=403, text="only by the agent's socket on its node\n")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != 0:
            return web.Response(status=403, text="only root may release addresses\n")
        return await handler(request)

    return guarded


def _json(**body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
