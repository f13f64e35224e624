"""IPPools and IPReservations as declared, judged; of one that cannot be used any more, the last good form.

That is on disk for the next start: else its pods would be in no pool, and new ones get addresses of podCIDRs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bgp.resources import Problem
from felix_py import log
from felix_py.agent.last_good import Kept
from felix_py.datastore.kinds import IP_POOLS, IP_RESERVATIONS
from felix_py.datastore.store import Store
from felix_py.ipam.parse import (
    POOL,
    RESERVATION,
    Bad,
    Declared,
    parse_pool,
    parse_reservation,
    unknown,
    without_overlaps,
)
from felix_py.ipam.resources import AllowedUse, IPPool, IPReservation
from felix_py.records import ConfigurationRecord
from policy.model import Family

Parse = Callable[[str, object], IPPool | IPReservation]
Form = dict[str, Any]
"""Kind, name and spec of an object."""

_PARSED: Mapping[str, Parse] = {POOL: parse_pool, RESERVATION: parse_reservation}


class DeclaredPools:
    """A view of the store's tables. On the event loop only."""

    def __init__(self, store: Store, state_dir: Path) -> None:
        self._tables = {kind.name: store.own(kind) for kind in (IP_POOLS, IP_RESERVATIONS)}
        self._listeners: list[Callable[[], None]] = []
        self._stale = True
        self._good: dict[tuple[str, str], IPPool | IPReservation] = {}
        self._forms: dict[str, Form] = {}
        """Of each as it is used, by uid: for the file."""
        self._file = Kept(state_dir / "pools.json")
        self._log = log.get("blocks")
        fields, self._unkept = self._file.read()
        """Why the file cannot be read or written, or empty."""
        if self._unkept:
            self._log.warning("which pools were good is lost", reason=self._unkept)
        self._kept: dict[str, Form] = fields or {}
        self._earlier = dict(self._kept)
        """Those of an earlier life of the agent."""
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

    def last_seen(self, families: Collection[Family]) -> tuple[str, ...]:
        """The names of pools of these families for pods: as listed, or of an earlier life while none are."""
        pools = self.pools if self._tables[POOL].listed.is_set() else tuple(self._pools_of_earlier())
        return tuple(
            pool.name for pool in pools if pool.family in families and AllowedUse.WORKLOAD in pool.allowed_uses
        )

    def _pools_of_earlier(self) -> Iterator[IPPool]:
        for form in self._earlier.values():
            if form["kind"] == POOL:
                with suppress(Bad):  # it was good to another version
                    yield parse_pool(form["name"], form["spec"])

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

    async def keep(self) -> None:
        """Write the forms in use down, if they have changed. All of them must be listed."""
        self._judge()
        forms = self._forms
        if forms == self._kept:
            return
        try:
            await asyncio.to_thread(self._file.write, forms)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._unkept:
                self._log.warning("pools cannot be noted", path=str(self._file.path), reason=reason)
            self._unkept = reason
        else:
            self._kept, self._unkept = forms, ""

    def _judge(self) -> None:
        if not self._stale:
            return
        self._stale = False
        problems: list[Problem] = []
        good: dict[tuple[str, str], IPPool | IPReservation] = {}
        forms: dict[str, Form] = {}
        for kind, parse in _PARSED.items():
            for record in self._tables[kind].records.values():
                problems += unknown(kind, record.name, record.spec)
                form: Form = {"kind": kind, "name": record.name, "spec": record.spec}
                try:
                    good[kind, record.name] = _parsed(kind, record, parse)
                    forms[record.uid] = form
                except Bad as error:
                    problems.append(error.problem)
                    if last := self._last_form(kind, record):
                        with suppress(Bad):  # it was good to another version
                            good[kind, record.name] = parse(record.name, last["spec"])
                            forms[record.uid] = last
        self._good, self._forms = good, forms
        records = self._tables[POOL].records
        pools = [one for one in good.values() if isinstance(one, IPPool)]
        declared = [Declared(pool, records["", pool.name].created) for pool in pools]
        self._pools, overlaps = without_overlaps(declared)
        self._problems = frozenset((*problems, *overlaps))

    def _last_form(self, kind: str, record: ConfigurationRecord) -> Form | None:
        """The last form in which an object could be used."""
        form = self._forms.get(record.uid) or self._earlier.get(record.uid)
        return form if form and (form["kind"], form["name"]) == (kind, record.name) else None


def _parsed(kind: str, record: ConfigurationRecord, parse: Parse) -> IPPool | IPReservation:
    if record.problem:
        raise Bad(kind, record.name, record.problem)
    return parse(record.name, record.spec)
