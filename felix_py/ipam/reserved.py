"""Addresses that no pod gets without asking for them: IPReservations, and those that are kept for a name; and
those that are lent to other nodes, which no pod of this one gets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping

from bgp.prefixes import parse
from felix_py.ipam.pool import address_number
from felix_py.ipam.resources import IPReservation
from felix_py.records import Elsewhere
from policy.model import Family

Lookup = Callable[[Family, int, int], Elsewhere | None]


class Reserved:
    """A look-up for :class:`felix_py.ipam.store.AddressStore` that knows reservations besides another look-up.

    The other one counts first: what is in use is no pod's, asked for or not. :meth:`set` and calls may be in
    different threads.
    """

    def __init__(self, elsewhere: Lookup) -> None:
        self._elsewhere = elsewhere
        self._ranges: Mapping[Family, _Ranges] = {family: _Ranges([]) for family in Family}
        self._kept: Mapping[tuple[Family, int], Elsewhere] = {}
        self._lent: Mapping[tuple[Family, int], Elsewhere] = {}

    def __call__(self, family: Family, number: int, length: int) -> Elsewhere | None:
        """See :data:`felix_py.ipam.store.Lookup`."""
        if lent := self._lent.get((family, number)):
            return lent  # before the kernel is asked, whose route to the borrower is as it should be
        found = self._elsewhere(family, number, length) or self._ranges[family].find(number)
        return found or self._kept.get((family, number))

    def set(self, reservations: Iterable[IPReservation]) -> None:
        """Replace all reservations."""
        found: dict[Family, list[tuple[int, int, Elsewhere]]] = {family: [] for family in Family}
        for reservation in reservations:
            for cidr in reservation.reserved_cidrs:
                version, bits, length, first = parse(cidr)
                last = first + (1 << (bits - length)) - 1
                what = Elsewhere(cidr, f"reserved by IPReservation {reservation.name}", last, True)
                found[Family(version)].append((first, last, what))
        self._ranges = {family: _Ranges(ranges) for family, ranges in found.items()}

    def keep(self, owners: Mapping[str, str]) -> None:
        """Replace what is kept: address -> the pod that it is kept for."""
        found = {address_number(address): (address, owner) for address, owner in owners.items()}
        self._kept = {
            place: Elsewhere(address, f"kept for pod {owner}", place[1], True)
            for place, (address, owner) in found.items()
        }

    def lend(self, borrowers: Mapping[str, str]) -> None:
        """Replace what is lent: address -> the node that has it."""
        found = {address_number(address): (address, node) for address, node in borrowers.items()}
        self._lent = {
            place: Elsewhere(address, f"lent to node {node}", place[1], lent=True)
            for place, (address, node) in found.items()
        }


class _Ranges:
    """CIDRs: of two, one is inside the other, or they have nothing in common."""

    def __init__(self, ranges: list[tuple[int, int, Elsewhere]]) -> None:
        self._ranges: list[tuple[int, int, Elsewhere]] = []
        for first, last, what in sorted(ranges, key=lambda it: (it[0], -it[1])):
            if not self._ranges or first > self._ranges[-1][1]:
                self._ranges.append((first, last, what))
        self._firsts = [first for first, _, _ in self._ranges]

    def find(self, number: int) -> Elsewhere | None:
        at = bisect_right(self._firsts, number) - 1
        return self._ranges[at][2] if at >= 0 and number <= self._ranges[at][1] else None
