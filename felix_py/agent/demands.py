"""What this node's pods want of pools: lately, and now, while they wait for an address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from felix_py.ipam.blocks import REST, Demand
from felix_py.ipam.pools import selects_node
from felix_py.ipam.resources import AllowedUse, AssignmentMode, IPPool
from policy.model import Family

Pools = tuple[str, ...]
"""Names of the pools of one family, in order."""


def names_of(pools: Sequence[IPPool]) -> Pools:
    """The names of some pools of one family, in their order."""
    return tuple(pool.name for pool in pools)


class Demands:
    """On the event loop only. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._asked: dict[Pools, float] = {}
        """When a pod has last asked for them."""
        self._waiting: dict[object, tuple[tuple[Pools, ...], frozenset[str]]] = {}
        """What pods wait for, each with the blocks (uids) in which it has found nothing."""
        self._wanted: Counter[str] = Counter()

    def note(self, found: Iterable[Pools], now: float) -> None:
        """Pods get addresses of these."""
        self._asked |= dict.fromkeys(found, now)

    @contextmanager
    def waiting(self, pools: Sequence[Pools], cidr: str = "") -> Iterator[Callable[[frozenset[str]], None]]:
        """A pod waits for an address of these pools, or for a certain block, until the context ends.

        Yields what is to be called with the blocks (uids) in which nothing was found.
        """
        waiter = object()

        def found_nothing(seen: frozenset[str]) -> None:
            self._waiting[waiter] = tuple(pools), seen

        self._wanted.update([cidr] if cidr else ())
        try:
            yield found_nothing
        finally:
            self._waiting.pop(waiter, None)
            self._wanted.subtract([cidr] if cidr else ())

    @property
    def wanted(self) -> frozenset[str]:
        """The very blocks (CIDRs) that pods wait for."""
        return frozenset(cidr for cidr, count in self._wanted.items() if count)

    @property
    def urgent(self) -> bool:
        """Whether a pod waits."""
        return bool(self._waiting or self._wanted.total())

    def all(
        self, pools: Iterable[IPPool], labels: Mapping[str, str], seen: frozenset[str], now: float
    ) -> tuple[Demand, ...]:
        """What pods have asked for within a rest, and what any pod of a node with these labels may ask for.

        ``seen``: the uids of all blocks at hand. Who has not yet looked into the newest may find an address
        there, and needs no further one.
        """
        self._asked = {names: at for names, at in self._asked.items() if now - at < REST}
        usual: dict[Family, list[str]] = {}
        for pool in pools:
            automatic = pool.assignment_mode is AssignmentMode.AUTOMATIC and not pool.disabled
            if automatic and AllowedUse.WORKLOAD in pool.allowed_uses and selects_node(pool, labels):
                usual.setdefault(pool.family, []).append(pool.name)
        wanted = {*self._asked, *(tuple(names) for names in usual.values())}
        missed = (all_of for all_of, looked in self._waiting.values() if looked == seen)
        waiting = Counter(names for all_of in missed for names in all_of)
        return tuple(Demand(names, waiting[names]) for names in sorted(wanted))
