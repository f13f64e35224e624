"""``/bgp/…`` of the health server's private socket: a node's sessions, announcements and learned routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from aiohttp import web

from bgp.announcement import Announcement
from bgp.prefixes import canonical, covers, parse
from bgp.rib import Explained
from bgp.session import PeerStatus
from felix_py.observe.status import described


class Bgp(Protocol):
    """See :class:`felix_py.agent.bgp.Bgp`."""

    @property
    def in_sync(self) -> bool: ...

    def peers(self) -> list[PeerStatus]: ...

    def announced(self) -> Mapping[str, Mapping[str, Announcement | None]]: ...

    def refused(self) -> Mapping[str, Mapping[str, str]]: ...

    def routes(self) -> Mapping[str, tuple[str, ...]]: ...

    def priority(self, prefix: str) -> int: ...

    def explain(self, prefix: str) -> list[Explained]: ...


class BgpRoutes:
    """Routes for :class:`felix_py.observe.health.HealthServer`."""

    def __init__(self, bgp: Bgp) -> None:
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
        return _json(inSync=self._bgp.in_sync, peers=[_peer(peer) for peer in self._bgp.peers()])

    async def _announced(self, _request: web.Request) -> web.Response:
        return _json(announced=announcements(self._bgp.announced()), refused=refusals(self._bgp.refused()))

    async def _routes(self, _request: web.Request) -> web.Response:
        found = self._bgp.routes()
        of = self._bgp.priority
        return _json(
            routes=[{"prefix": p, "nextHops": hops, "priority": of(p)} for p, hops in sorted(found.items())]
        )

    async def _explain(self, request: web.Request) -> web.Response:
        """``?prefix=CIDR``, or an address: then the longest learned prefix that covers it."""
        asked = request.query.get("prefix", "")
        try:
            prefix = self._meant(canonical(asked))
        except ValueError:
            return web.Response(status=400, text=f"{asked[:80]!r} is neither a CIDR nor an address\n")
        paths = [_path(one) for one in self._bgp.explain(prefix)]
        return _json(prefix=prefix, nextHops=self._bgp.routes().get(prefix, ()), paths=paths)

    def _meant(self, prefix: str) -> str:
        _, bits, length, _ = parse(prefix)
        if length < bits or self._bgp.explain(prefix):
            return prefix
        address = prefix.partition("/")[0]
        covering = [known for known in self._bgp.routes() if covers(known, address)]
        return max(covering, key=lambda known: parse(known)[2], default=prefix)


def announcements(told: Mapping[str, Mapping[str, Announcement | None]]) -> list[dict[str, Any]]:
    """What peers are told, one entry for all that are told the same of a prefix."""
    peers: dict[tuple[str, Announcement | None], list[str]] = {}
    for peer, announced in told.items():
        for prefix, announcement in announced.items():
            peers.setdefault((prefix, announcement), []).append(peer)
    return [
        {"prefix": prefix, "peers": sorted(to), **(_attributes(announcement) if announcement else {})}
        for (prefix, announcement), to in sorted(peers.items(), key=lambda item: (item[0][0], sorted(item[1])))
    ]


def refusals(refused: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """What peers cannot be told, one entry for all with one reason."""
    peers: dict[tuple[str, str], list[str]] = {}
    for peer, reasons in refused.items():
        for prefix, reason in reasons.items():
            peers.setdefault((prefix, reason), []).append(peer)
    return [{"prefix": p, "peers": sorted(to), "reason": reason} for (p, reason), to in sorted(peers.items())]


def _attributes(one: Announcement) -> dict[str, Any]:
    return {
        "nextHop": one.next_hop,
        "asPath": one.as_path,
        "med": one.med,
        "localPreference": one.local_preference,
        "communities": [*one.communities, *one.large_communities],
    }


def _path(one: Explained) -> dict[str, Any]:
    path = one.path
    return {
        "peer": one.peer,
        "nextHop": path.next_hop,
        "pathIdentifier": path.path_id,
        "asPath": path.as_path,
        "origin": ("IGP", "EGP", "INCOMPLETE")[path.origin],
        "med": path.med,
        "localPreference": path.local_pref,
        "communities": [*path.communities, *path.large_communities],
        "used": one.used,
        "reason": one.reason,
    }


def _peer(peer: PeerStatus) -> dict[str, Any]:
    more = {"sinceSeconds": round(peer.since, 1), "prefixLimit": peer.limit, "families": list(peer.families)}
    return described(peer) | more


def _json(**body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
