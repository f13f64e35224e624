"""IPPools and IPReservations as they are declared, those that can be used."""

from __future__ import annotations

from collections.abc import Callable

from felix_py.datastore.kinds import IP_POOLS, IP_RESERVATIONS
from felix_py.datastore.store import Store
from felix_py.ipam.parse import Bad, Declared, parse_pool, parse_reservation, without_overlaps
from felix_py.ipam.resources import IPPool, IPReservation


class DeclaredPools:
    """A view of the store's tables. On the event loop only."""

    def __init__(self, store: Store) -> None:
        self._pools = store.own(IP_POOLS)
        self._reservations = store.own(IP_RESERVATIONS)
        self._listeners: list[Callable[[], None]] = []
        self._found: tuple[IPPool, ...] | None = None
        for table in (self._pools, self._reservations):
            table.on_change(self._changed)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever an object may have changed."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        self._found = None
        for listener in self._listeners:
            listener()

    @property
    def listed(self) -> bool:
        """Whether all of them are known."""
        return self._pools.listed.is_set() and self._reservations.listed.is_set()

    @property
    def any(self) -> bool:
        """Whether there is any pool, usable or not."""
        return bool(self._pools.records)

    @property
    def pools(self) -> tuple[IPPool, ...]:
        """The pools that can be used, by name; they do not overlap."""
        if self._found is None:
            declared: list[Declared] = []
            for record in self._pools.records.values():
                try:
                    declared.append(Declared(parse_pool(record.name, record.spec), record.created))
                except Bad:
                    continue  # whoever claims blocks of pools tells it
            self._found, _ = without_overlaps(declared)
        return self._found

    @property
    def reservations(self) -> tuple[IPReservation, ...]:
        """The reservations that can be used."""
        found: list[IPReservation] = []
        for record in self._reservations.records.values():
            try:
                found.append(parse_reservation(record.name, record.spec))
            except Bad:
                continue
        return tuple(found)

    def uid(self, name: str) -> str:
        """The uid of the IPPool of that name, or an empty text."""
        record = self._pools.records.get(("", name))
        return record.uid if record else ""
