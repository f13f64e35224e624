"""``/flows`` of the health server."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

import msgspec
from aiohttp import web

from felix_py.dataplane.protocols import FlowTable
from felix_py.records import Flow

T = TypeVar("T")


class Flows(Protocol):
    """See :class:`felix_py.agent.flows.Flows`."""

    async def call(self, work: Callable[[FlowTable], T]) -> T: ...


def flows_route(flows: Flows, addresses: Callable[[], Collection[str]]) -> web.RouteDef:
    """``/flows``: the connections of the node's endpoints, in the form of :func:`described`."""

    async def answer(_request: web.Request) -> web.Response:
        chosen = addresses()
        try:
            found = await flows.call(lambda table: described(table, chosen))
        except OSError as error:
            return web.Response(text=f"the kernel's connections cannot be read: {error}\n", status=503)
        return web.Response(body=found, content_type="application/json")

    return web.get("/flows", answer)


def described(table: FlowTable, addresses: Collection[str]) -> bytes:
    """Returns the TCP, UDP and SCTP connections of some addresses as a JSON list, the latest used first.

    Connections that differ only in the source port are one entry. Raises OSError if the kernel does not answer.
    """
    newest: dict[tuple[object, ...], Flow] = {}
    for flow in table.flows(addresses):
        if flow.protocol is not None:
            key = (flow.source, flow.destination, flow.protocol, flow.port)
            if key not in newest or (newest[key].replied, newest[key].expires) < (flow.replied, flow.expires):
                newest[key] = flow
    ordered = sorted(newest.values(), key=lambda flow: -flow.expires)
    return msgspec.json.encode(
        [
            {
                "source": flow.source,
                "destination": flow.destination,
                "protocol": flow.protocol,
                "port": flow.port,
                "replied": flow.replied,
            }
            for flow in ordered
        ]
    )
