"""Allocation of packet mark numbers to policy classes.

A number outlives its class: until the kernel's map sets follow, packets still carry it, and if it already meant
another class they would be judged by policies that never selected them. So a class is first *retired* (its
dispatch rule stays), and its number is freed once the caller confirms that the kernel maps no address to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from felix_py.desired.marks import OVERFLOW
from policy.ir import ChainId


class ClassNumbers:
    """Numbers 1..126 for the class chains of one family and direction; 127 stands for every class beyond."""

    def __init__(
        self,
        held: Mapping[ChainId, int],
        taken: Collection[int] = (),
        before: Mapping[ChainId, int] | None = None,
    ) -> None:
        """``held``: class chain -> number as the kernel has it now, kept so that a restart rewrites nothing.

        ``taken``: numbers to which the kernel maps addresses. One without a held class is not reused before all
        addresses have their own number. ``before``: class chain -> number in rules that are about to be removed;
        a class keeps that number, so that those rules stay correct until then.
        """
        self._before = dict(before or {})
        self._numbers: dict[ChainId, int] = dict(held)
        self._retired: set[ChainId] = set(held)
        self._leaving: set[int] = set(taken).difference(held.values())

    def claim(self, chain: ChainId) -> int:
        """Returns the number of a class that has endpoints; a new class gets the lowest free one."""
        self._retired.discard(chain)
        number = self._numbers.get(chain)
        if number is None:
            number = self._numbers[chain] = self._choose(chain)
        return number

    def _choose(self, chain: ChainId) -> int:
        before = self._before.get(chain, OVERFLOW)
        if before != OVERFLOW and before not in self._numbers.values():
            return before
        taken = self._leaving.union(self._numbers.values(), self._before.values())
        return next((n for n in range(1, OVERFLOW) if n not in taken), OVERFLOW)

    def retire(self, chain: ChainId) -> None:
        """Mark a class as without endpoints; it keeps its number until :meth:`free`."""
        self._retired.add(chain)

    def free(self) -> set[ChainId]:
        """Forget and return the retired classes; the kernel must map no address to them any more.

        Their numbers can be claimed after the next call, when their dispatch rules are gone as well.
        """
        gone, self._retired = self._retired, set()
        self._leaving = {self._numbers.pop(chain) for chain in gone}
        self._before.clear()
        return gone

    def numbers(self) -> dict[ChainId, int]:
        """Returns class chain -> number for the dispatch tree, retired classes included."""
        return dict(self._numbers)
