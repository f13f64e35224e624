"""Secrets by name: each is followed by a watch of its own.

To list the namespace would take a right to all its Secrets, and tell 2,000 agents of everybody's. A watch by name
costs the API server what each kubelet's own does: it has an index for it, and sends nothing but changes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from felix_py import log
from felix_py.datastore.client import Api
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.kinds import secret_kind
from felix_py.datastore.outage import Outage
from felix_py.datastore.store import Table
from felix_py.records import SecretRecord


class NamedSecrets:
    """The Secrets of one namespace that somebody wants. On the event loop only."""

    def __init__(
        self, api: Api, namespace: str, timing: Timing | None = None, outage: Outage | None = None
    ) -> None:
        """``outage`` is shared by all that watch this server."""
        self._api = api
        self._namespace = namespace
        self._timing = timing
        self._outage = outage
        self._followed: dict[str, tuple[Table[SecretRecord], Reflector[SecretRecord]]] = {}
        self._since: dict[str, float] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._log = log.get("secrets")
        self.changed = asyncio.Event()
        """Set whenever a Secret may have changed; who waits for it clears it."""

    def want(self, names: Collection[str]) -> None:
        """Follow these, and no others."""
        for name in self._followed.keys() - set(names):
            _, reflector = self._followed.pop(name)
            ending = asyncio.create_task(reflector.stop())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        for name in sorted(set(names) - self._followed.keys()):
            self._since[name] = time.monotonic()
            self._follow(name)

    def _follow(self, name: str) -> None:
        kind = secret_kind(self._namespace, name)
        table = Table(kind, lambda _changes: None, lambda _problem: None, lambda _kind: None)
        reflector = Reflector(self._api, kind, self._timing, outage=self._outage)

        def take(items: Sequence[Any]) -> None:
            table.apply(items)
            self.changed.set()

        self._followed[name] = table, reflector
        self._log.info("following a Secret", namespace=self._namespace, name=name)
        reflector.start(take)

    def known(self) -> Mapping[str, Mapping[str, str] | None]:
        """Name -> values, or None if there is no such Secret, of those that have been read."""
        found: dict[str, Mapping[str, str] | None] = {}
        for name, (table, _) in self._followed.items():
            if table.listed.is_set():
                record = table.records.get((self._namespace, name))
                found[name] = record.data if record else None
        return found

    def unread(self, seconds: float = 0.0) -> frozenset[str]:
        """Those that are wanted for so long already, and have not been read."""
        asked = time.monotonic() - seconds
        return frozenset(
            name
            for name, (table, _) in self._followed.items()
            if not table.listed.is_set() and self._since[name] <= asked
        )

    async def stop(self) -> None:
        """Follow nothing any more."""
        self.want(())
        await asyncio.gather(*self._ending)
