"""IPPools and IPReservations as declared, judged; of one that cannot be used any more, the last good form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bgp.resources import Problem
from felix_py.datastore.kinds import IP_POOLS, IP_RESERVATIONS
from felix_py.datastore.store import Store
from felix_py.ipam.parse import (
    POOL,
    RESERVATION,
    Bad,
    Declared,
    parse_pool,
    parse_reservation,
    without_overlaps,
)
from felix_py.ipam.resources import IPPool, IPReservation
from felix_py.records import ConfigurationRecord

Parse = Callable[[str, object], IPPool | IPReservation]
_PARSED: Mapping[str, Parse] = {POOL: parse_pool, RESERVATION: parse_reservation}


class DeclaredPools:
    """A view of the store's tables. On the event loop only."""

    def __init__(self, store: Store) -> None:
        self._tables = {kind.name: store.own(kind) for kind in (IP_POOLS, IP_RESERVATIONS)}
        self._listeners: list[Callable[[], None]] = []
        self._stale = True
        self._good: dict[tuple[str, str], IPPool | IPReservation] = {}
        self._pools: tuple[IPPool, ...] = ()
        self._problems: frozenset[Problem] = frozenset()
        for table in self._tables.values():
            table.on_change(self._changed)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever an object may have changed."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        self._stale = True
        for listener in self._listeners:
            listener()

    @property
    def listed(self) -> bool:
        """Whether all of them are known."""
        return all(table.listed.is_set() for table in self._tables.values())

    @property
    def any(self) -> bool:
        """Whether there is any pool, usable or not."""
        return bool(self._tables[POOL].records)

    @property
    def pools(self) -> tuple[IPPool, ...]:
        """The pools that can be used, by name; they do not overlap."""
        self._judge()
        return self._pools

    @property
    def reservations(self) -> tuple[IPReservation, ...]:
        """The reservations that can be used."""
        self._judge()
        return tuple(one for one in self._good.values() if isinstance(one, IPReservation))

    @property
    def problems(self) -> frozenset[Problem]:
        """What is wrong with objects that cannot be used as they are."""
        self._judge()
        return self._problems

    def uid(self, name: str, kind: str = POOL) -> str:
        """The uid of the object of that name, or an empty text."""
        record = self._tables[kind].records.get(("", name))
        return record.uid if record else ""

    def _judge(self) -> None:
        if not self._stale:
            return
        self._stale = False
        problems: list[Problem] = []
        good: dict[tuple[str, str], IPPool | IPReservation] = {}
        for kind, parse in _PARSED.items():
            for record in self._tables[kind].records.values():
                try:
                    good[kind, record.name] = _parsed(kind, record, parse)
                except Bad as error:
                    problems.append(error.problem)
                    if (last := self._good.get((kind, record.name))) is not None:
                        good[kind, record.name] = last
        self._good = good
        records = self._tables[POOL].records
        pools = [one for one in good.values() if isinstance(one, IPPool)]
        declared = [Declared(pool, records["", pool.name].created) for pool in pools]
        self._pools, overlaps = without_overlaps(declared)
        self._problems = frozenset((*problems, *overlaps))


def _parsed(kind: str, record: ConfigurationRecord, parse: Parse) -> IPPool | IPReservation:
    if record.problem:
        raise Bad(kind, record.name, record.problem)
    return parse(record.name, record.spec)
