"""``/flows`` of the health server."""

from __future__ import annotations

from collections.abc import Callable, Collection

from aiohttp import web

from felix_py.agent.flows import Flows, described


def flows_route(flows: Flows, addresses: Callable[[], Collection[str]]) -> web.RouteDef:
    """``/flows``: the connections of the node's endpoints, as :func:`described`."""

    async def answer(_request: web.Request) -> web.Response:
        chosen = addresses()
        try:
            found = await flows.call(lambda table: described(table, chosen))
        except OSError as error:
            return web.Response(text=f"the kernel's connections cannot be read: {error}\n", status=503)
        return web.Response(body=found, content_type="application/json")

    return web.get("/flows", answer)
