"""A change of a cluster object with the previous object, so that consumers need not keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Change(Generic[R_co]):
    """An object is new (``before`` None), changed, or gone (``after`` None)."""

    before: R_co | None
    after: R_co | None

    @property
    def newest(self) -> R_co:
        """The current object, or the last one."""
        newest = self.after if self.after is not None else self.before
        assert newest is not None
        return newest

    def of(self, kind: type[T]) -> Change[T] | None:
        """This change, or None if its object is of another class."""
        return cast("Change[T]", self) if isinstance(self.newest, kind) else None
