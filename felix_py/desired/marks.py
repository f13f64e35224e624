"""Layout of the packet mark: an accept bit, a policy class number per direction, a pass bit."""

from __future__ import annotations

from dataclasses import dataclass

from policy.model import Direction

CLASS_BITS = 7
OVERFLOW = (1 << CLASS_BITS) - 1
"""The class number of all classes beyond the number space; they are matched by a set each."""

BRANCH_BITS, LEAF_BITS = 4, 2
"""Low bits of a class number that the root, and the second level, of the dispatch tree leave to the next one."""

FOREIGN = 0xC000
"""kube-proxy's masquerade and drop bits (KUBE-MARK-MASQ 0x4000, KUBE-MARK-DROP 0x8000)."""

_NEEDED_BITS = 2 + 2 * CLASS_BITS


@dataclass(frozen=True, slots=True)
class Marks:
    """The bits of one mask. All values are in place (shifted), ready for ``--mark value/mask``."""

    accept: int
    egress_shift: int
    ingress_shift: int
    passed: int

    @classmethod
    def from_mask(cls, mask: int) -> Marks:
        """Divide a 32-bit mask. ValueError: it takes kube-proxy's bits, or has no 16 adjacent bits."""
        if not 0 < mask < 1 << 32:
            raise ValueError(f"mark mask {mask:#x} is not a 32-bit mask")
        if mask & FOREIGN:
            raise ValueError(f"mark mask {mask:#x} takes kube-proxy's bits 0x4000 or 0x8000; try 0xffff0000")
        run = (1 << _NEEDED_BITS) - 1
        for shift in range(32 - _NEEDED_BITS + 1):
            if mask >> shift & run == run:
                return cls(1 << shift, shift + 1, shift + 1 + CLASS_BITS, 1 << shift + 1 + 2 * CLASS_BITS)
        raise ValueError(f"mark mask {mask:#x} has no {_NEEDED_BITS} adjacent bits; try 0xffff0000")

    def shift(self, direction: Direction) -> int:
        """Lowest bit of a direction's class number."""
        return self.egress_shift if direction is Direction.EGRESS else self.ingress_shift

    def class_mask(self, direction: Direction) -> int:
        """All bits of a direction's class number."""
        return OVERFLOW << self.shift(direction)

    def class_mark(self, direction: Direction, number: int) -> int:
        """A class number, shifted to its place."""
        return number << self.shift(direction)

    def number(self, direction: Direction, mark: int) -> int:
        """The class number of a direction in ``mark``."""
        return mark >> self.shift(direction) & OVERFLOW

    @property
    def all(self) -> int:
        """Every bit of ours."""
        classes = self.class_mask(Direction.EGRESS) | self.class_mask(Direction.INGRESS)
        return self.accept | classes | self.passed
