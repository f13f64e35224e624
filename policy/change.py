"""What happened to an object of the cluster, with what was there before, so that nobody else must keep that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Change(Generic[R_co]):
    """An object is new (``before`` None), is another now, or is gone (``after`` None)."""

    before: R_co | None
    after: R_co | None

    @property
    def newest(self) -> R_co:
        """What is there now, or was last."""
        newest = self.after if self.after is not None else self.before
        assert newest is not None
        return newest

    def of(self, kind: type[T]) -> Change[T] | None:
        """This, if it is about an object of such a class."""
        return cast("Change[T]", self) if isinstance(self.newest, kind) else None
