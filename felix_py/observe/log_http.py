"""``/log`` of the health server: the newest lines that the agent has logged, whatever became of their reader."""

from __future__ import annotations

from aiohttp import web

from felix_py import log


def log_route() -> web.RouteDef:
    """``/log``: text, oldest line first."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=log.recent(), content_type="text/plain", charset="utf-8")

    return web.get("/log", answer)
