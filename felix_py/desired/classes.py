"""Which number in the packet mark stands for which policy class.

A number outlives its class on purpose. Between "no endpoint is in this class any more" and "the kernel has
heard of it" packets still carry the number; if it already meant another class, they would be judged by a policy
that never selected them. So a class is first *retired* (its dispatch rule stays) and its number becomes free
only when the caller confirms that the kernel maps no address to it.
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

        ``taken``: numbers to which the kernel maps addresses. One that no held class has means nothing any more,
        and must not come to mean another class before all addresses have got their own. ``before``: class chain
        -> number as rules have it that are about to go; a class gets the same again, so that they judge by it
        until then.
        """
        self._before = dict(before or {})
        self._numbers: dict[ChainId, int] = dict(held)
        self._retired: set[ChainId] = set(held)
        self._leaving: set[int] = set(taken).difference(held.values())

    def claim(self, chain: ChainId) -> int:
        """The number of a class that has endpoints; the lowest free one if it is new."""
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
        """The class has no endpoint any more; it keeps its number until :meth:`free`."""
        self._retired.add(chain)

    def free(self) -> set[ChainId]:
        """Forget the retired classes, and say which they were. Only once the kernel maps no address to them.

        Their numbers can be claimed after the next call: by then their dispatch rules are gone as well.
        """
        gone, self._retired = self._retired, set()
        self._leaving = {self._numbers.pop(chain) for chain in gone}
        self._before.clear()
        return gone

    def numbers(self) -> dict[ChainId, int]:
        """Class chain -> number, retired ones included: what dispatch must know."""
        return dict(self._numbers)
