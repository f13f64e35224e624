"""Services and EndpointSlices that a test puts where the agent follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bgp.services import Endpoints, Service
from policy.change import Change


class Objects:
    """The informers, whose objects the test puts there."""

    def __init__(self) -> None:
        self.wanted: list[bool] = []
        self.complete = self.forbidden = False
        self._held: dict[tuple[type, Any], Any] = {}

    def subscribe(self, handler: Callable[[Any], None], on_listed: Callable[[], None]) -> None:
        self._handler, self._on_listed = handler, on_listed

    def want(self, *, endpoints: bool) -> None:
        self.wanted.append(endpoints)

    def listed(self) -> bool:
        return self.complete

    def refused(self) -> bool:
        return self.forbidden

    def put(self, *found: Service | Endpoints) -> None:
        for one in found:
            where = (type(one), one.key)
            self._handler([Change(self._held.get(where), one)])
            self._held[where] = one

    def end_list(self) -> None:
        self.complete = True
        self._on_listed()
