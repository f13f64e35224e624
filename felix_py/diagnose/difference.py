"""One difference between the kernel and the intended state."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from felix_py.refs import Ref


class Problem(enum.StrEnum):
    """Kind of a difference."""

    MISSING = "missing"
    ALTERED = "altered"
    EXTRA = "nobody asked for it"
    MISPLACED = "not in its place"


@dataclass(frozen=True, slots=True)
class Difference:
    """``about``: the policy with its rule, the pod, or another purpose of the object.

    ``expected`` and ``found``: the object's content, if any. ``place``: the part of the object, if not the whole.
    """

    ref: Ref
    problem: Problem
    about: str
    expected: str = ""
    found: str = ""
    place: str = ""

    @property
    def where(self) -> str:
        """The kernel's object, or the place in it."""
        return self.place or str(self.ref)

    @property
    def key(self) -> tuple[str, ...]:
        """Identifies the difference when the kernel is read again."""
        return (self.ref.kind, self.problem, self.where, self.expected)

    def __str__(self) -> str:
        match self.problem:
            case Problem.MISSING:
                text = f"{self.where} is missing"
            case Problem.ALTERED:
                text = f"{self.where} is altered"
            case Problem.MISPLACED:
                text = f"{self.where} is not in its place"
            case Problem.EXTRA:
                text = f"nobody asked for {self.where}"
        contents = (("expected", self.expected), ("found", self.found))
        details = [f"{word} {what}" for word, what in contents if what]
        return f"{self.about}: {text}" + (f": {', '.join(details)}" if details else "")

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.ref.kind,
            "problem": self.problem.value,
            "about": self.about,
            "object": self.where,
            "expected": self.expected,
            "found": self.found,
        }
