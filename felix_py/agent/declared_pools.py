"""IPPools and IPReservations as declared, judged; of a pool that cannot be used any more, the last good form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bgp.resources import Problem
from felix_py.datastore.kinds import IP_POOLS, POOL_KINDS
from felix_py.datastore.store import Store, Table
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
from felix_py.notices import NoticeKind, Notices
from felix_py.records import ConfigurationRecord

_PARSED: Mapping[str, Callable[[str, object], IPPool | IPReservation]] = {
    POOL: parse_pool,
    RESERVATION: parse_reservation,
}


class DeclaredPools:
    """On the event loop only."""

    def __init__(self, store: Store, notices: Notices, warn: Callable[[Problem, str], None]) -> None:
        """``warn`` writes an Event on the object of this uid."""
        self._tables: dict[str, Table[ConfigurationRecord]] = {kind.name: store.own(kind) for kind in POOL_KINDS}
        self._notices = notices
        self._warn = warn
        self._good: dict[tuple[str, str], IPPool | IPReservation] = {}
        self._warned: frozenset[Problem] = frozenset()
        self.pools: tuple[IPPool, ...] = ()
        """Those that can be used, also disabled ones, by name; they do not overlap."""
        self.reservations: tuple[IPReservation, ...] = ()
        self.events = tuple(table.changed for table in self._tables.values())
        """Set when a review is due; who waits for them clears them."""
        self._listeners: list[Callable[[], None]] = []
        for table in self._tables.values():
            table.on_change(self._changed)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when all objects are known, and whenever one may have changed."""
        self._listeners.append(listener)

    def _changed(self) -> None:
        if self.listed:
            self.review()
            for listener in self._listeners:
                listener()

    def uid(self, name: str) -> str:
        """The uid of the IPPool of that name, or an empty text."""
        record = self._tables[IP_POOLS.name].records.get(("", name))
        return record.uid if record else ""

    @property
    def listed(self) -> bool:
        """Whether both kinds have been read."""
        return all(table.listed.is_set() for table in self._tables.values())

    def review(self) -> None:
        """Judge all objects, and tell what is wrong with them."""
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
        records = self._tables[IP_POOLS.name].records
        declared = [
            Declared(one, records["", one.name].created) for one in good.values() if isinstance(one, IPPool)
        ]
        self.pools, overlaps = without_overlaps(declared)
        self.reservations = tuple(one for one in good.values() if isinstance(one, IPReservation))
        self._tell(frozenset((*problems, *overlaps)))

    def _tell(self, problems: frozenset[Problem]) -> None:
        told = {f"{one.kind} {one.name}": f"{one.kind} {one.name}: {one.field}: {one.reason}" for one in problems}
        for subject in list(self._notices.of(NoticeKind.IP_POOLS)):
            if subject.startswith((f"{POOL} ", f"{RESERVATION} ")) and subject not in told:
                self._notices.clear(NoticeKind.IP_POOLS, subject)
        for subject, text in told.items():
            self._notices.say(NoticeKind.IP_POOLS, subject, text)
        for problem in sorted(problems - self._warned):
            record = self._tables[problem.kind].records.get(("", problem.name))
            self._warn(problem, record.uid if record else "")
        self._warned = problems


def _parsed(
    kind: str, record: ConfigurationRecord, parse: Callable[[str, object], IPPool | IPReservation]
) -> IPPool | IPReservation:
    if record.problem:
        raise Bad(kind, record.name, record.problem)
    return parse(record.name, record.spec)
