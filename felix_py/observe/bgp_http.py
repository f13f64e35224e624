"""``/bgp`` of the health server's private socket: sessions, announcements and routes of this node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import msgspec
from aiohttp import web

from bgp.prefixes import canonical
from bgp.session import PeerStatus


class Bgp(Protocol):
    """See :class:`felix_py.agent.bgp.Bgp`."""

    @property
    def in_sync(self) -> bool: ...

    def peers(self) -> list[PeerStatus]: ...

    def announced(self) -> Mapping[str, Collection[str]]: ...

    def routes(self) -> Mapping[str, tuple[str, ...]]: ...

    def explain(self, prefix: str) -> Any: ...


class BgpRoutes:
    """Routes for :class:`felix_py.observe.health.HealthServer`."""

    def __init__(self, node: str, bgp: Bgp) -> None:
        self._node = node
        self._bgp = bgp

    def routes(self) -> list[web.RouteDef]:
        """Routes to add to an application."""
        return [
            web.get("/bgp/peers", self._peers),
            web.get("/bgp/announced", self._announced),
            web.get("/bgp/routes", self._routes),
            web.get("/bgp/explain", self._explain),
        ]

    async def _peers(self, _request: web.Request) -> web.Response:
        return self._answer(inSync=self._bgp.in_sync, peers=[described(peer) for peer in self._bgp.peers()])

    async def _announced(self, _request: web.Request) -> web.Response:
        peers: dict[str, list[str]] = {}
        for peer, prefixes in self._bgp.announced().items():
            for prefix in prefixes:
                peers.setdefault(prefix, []).append(peer)
        return self._answer(announced=[{"prefix": prefix, "peers": sorted(peers[prefix])} for prefix in peers])

    async def _routes(self, _request: web.Request) -> web.Response:
        found = self._bgp.routes()
        return self._answer(routes=[{"prefix": prefix, "nextHops": hops} for prefix, hops in found.items()])

    async def _explain(self, request: web.Request) -> web.Response:
        """``?prefix=CIDR``, or an address, of which the longest prefix is explained that covers it."""
        asked = request.query.get("prefix", "")
        try:
            prefix = canonical(asked)
        except ValueError:
            return web.Response(status=400, text=f"{asked[:80]!r} is neither a CIDR nor an address\n")
        return self._answer(**asdict(self._bgp.explain(prefix)))

    def _answer(self, **body: Any) -> web.Response:
        found = msgspec.json.encode({"node": self._node, **body})
        return web.Response(body=found, content_type="application/json")


def described(peer: PeerStatus) -> dict[str, Any]:
    """One peer, as ``/bgp/peers`` has it."""
    return {
        "address": peer.address,
        "asNumber": peer.asn,
        "established": peer.established,
        "sinceSeconds": round(peer.since, 1),
        "prefixesReceived": peer.received,
        "families": list(peer.families),
        "reason": peer.error,
    }
