"""Routes to other nodes' pods from two sources, BGP and Node objects: one for a prefix."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from felix_py.records import Route
from felix_py.refs import RouteRef


class RemoteRoutes:
    """Of a prefix that both sources have, the route from the Node object counts.

    It is the shorter way, and does not move when a session comes and goes. That of BGP is kept meanwhile, and
    counts again once the Node object or its link is gone.
    """

    def __init__(self) -> None:
        self._bgp: dict[RouteRef, Route] = {}
        self._nodes: dict[RouteRef, Route] = {}
        self._moved: dict[RouteRef, None] = {}
        self.bgp_revision = 0
        """Goes up with each change of what BGP has."""

    def from_bgp(self, changes: Mapping[RouteRef, Route | None]) -> None:
        """Note changed best routes; None: withdrawn."""
        self.bgp_revision += 1
        for key, route in changes.items():
            if route is None:
                self._bgp.pop(key, None)
            else:
                self._bgp[key] = route
            if key not in self._nodes:
                self._moved[key] = None

    def from_nodes(self, routes: Mapping[RouteRef, Route]) -> None:
        """Make these all routes from Node objects."""
        before, self._nodes = self._nodes, dict(routes)
        for key in before.keys() | routes.keys():
            if before.get(key) != routes.get(key):
                self._moved[key] = None

    def take(self, most: int) -> dict[RouteRef, Route | None]:
        """Returns so many of the routes that may have changed since they were taken last; None: it is gone."""
        keys = list(itertools.islice(self._moved, most))
        for key in keys:
            del self._moved[key]
        return {key: self._nodes.get(key) or self._bgp.get(key) for key in keys}

    @property
    def undone(self) -> bool:
        """Whether there is more to take."""
        return bool(self._moved)

    @property
    def number(self) -> int:
        """How many prefixes there is a route for."""
        return len(self._bgp.keys() | self._nodes.keys())

    def bgp_prefixes(self) -> Iterator[str]:
        """The prefixes that BGP has a route for."""
        return (key.destination for key in self._bgp)

    def metrics(self) -> dict[str, int]:
        """Prefix -> metric of the routes that have another one than the default."""
        return {key.destination: route.metric for key, route in (self._bgp | self._nodes).items() if route.metric}

    def gateways(self) -> dict[str, tuple[str, ...]]:
        """All routes: prefix -> gateways."""
        return {
            key.destination: tuple(hop.gateway for hop in route.next_hops)
            for key, route in (self._bgp | self._nodes).items()
        }
