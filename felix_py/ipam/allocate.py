"""The choice of the next address: which one has been unused for longest. No I/O and no clock.

Times are seconds since the machine's boot (CLOCK_BOOTTIME), which no clock change can move.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence

from felix_py.ipam.pool import Pool
from felix_py.records import Elsewhere
from policy.model import Family

MOST_RESTING = 4096
"""Released addresses remembered of a family; older releases count as never used."""

Used = Mapping[int, object]
"""Addresses that leases have, as integers."""


class Resting:
    """Addresses that were released and not leased since, of all families, in the order of their release."""

    def __init__(self) -> None:
        self._at: dict[Family, dict[int, float]] = {family: {} for family in Family}

    def copy(self) -> Resting:
        """An independent copy."""
        other = Resting()
        other._at = {family: dict(at) for family, at in self._at.items()}
        return other

    def add(self, family: Family, number: int, at: float) -> None:
        """Note a release, which is later than all that are noted."""
        held = self._at[family]
        held.pop(number, None)
        held[number] = at
        if len(held) > MOST_RESTING:
            del held[next(iter(held))]

    def drop(self, family: Family, number: int) -> None:
        """The address is leased."""
        self._at[family].pop(number, None)

    def of(self, family: Family) -> Mapping[int, float]:
        """Address -> time of its release, the oldest first."""
        return self._at[family]

    def within(self, pool: Pool) -> Iterator[tuple[int, float]]:
        """The addresses of a pool with the times of their release, the oldest first."""
        return ((number, at) for number, at in self._at[pool.family].items() if number in pool)

    def still(self, pool: Pool, now: float, cooldown: float) -> int:
        """How many addresses of a pool were released less than ``cooldown`` seconds ago."""
        return sum(now - at < cooldown for _, at in self.within(pool))


def choose(
    pools: Sequence[Pool],
    used: Used,
    resting: Resting,
    cursors: Mapping[str, int],
    usable: Callable[[Pool, int], Elsewhere | None],
    now: float,
    cooldown: float,
) -> tuple[Pool, int] | None:
    """The next address of pools of one family, with its pool, or None if all are in use.

    The first pool counts that has an address which was never used, or was released ``cooldown`` seconds ago; of
    the former the next one, round robin, of the latter the one that rests longest. If no pool has, the one that
    rests longest of all: no pod is refused while an address rests. ``cursors``: the address of each CIDR that was
    given out last. ``usable`` returns who else uses an address, if anybody.
    """
    shortened: tuple[float, Pool, int] | None = None
    for pool in pools:
        if (fresh := _fresh(pool, used, resting, cursors.get(pool.cidr), usable)) is not None:
            return pool, fresh
        rested = ((n, at) for n, at in resting.within(pool) if n not in used and usable(pool, n) is None)
        if (longest := next(rested, None)) is None:
            continue
        number, at = longest
        if now - at >= cooldown:
            return pool, number
        if shortened is None or at < shortened[0]:
            shortened = at, pool, number
    return None if shortened is None else shortened[1:]


def _fresh(
    pool: Pool,
    used: Used,
    resting: Resting,
    after: int | None,
    usable: Callable[[Pool, int], Elsewhere | None],
) -> int | None:
    known: Mapping[int, object] = ChainMap(used, resting.of(pool.family))  # type: ignore[arg-type]
    tried: set[int] = set()
    while (number := pool.next(known, after)) is not None and number not in tried:
        if (found := usable(pool, number)) is None:
            return number
        tried.add(number)
        after = min(found.last, pool.last)
    return None
