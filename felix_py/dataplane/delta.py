"""What is desired and what the kernel has, key by key, and what is to be written because of that. No I/O.

As felix/deltatracker of Calico: the set of keys that may differ is kept up to date with each change, so that an
apply costs what has changed, not what there is. A key costs nothing but its places in two dicts.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K")
D = TypeVar("D")
A = TypeVar("A")

_ABSENT: Any = object()


class Found(NamedTuple, Generic[K]):
    """What somebody else has changed: keys that were right and are not, and keys that nobody asked for."""

    lost: Collection[K] = ()
    strays: Collection[K] = ()


class Delta(Generic[K, D, A]):
    """Desired values D and actual values A by key.

    ``pending`` are the keys whose two values may differ. Of what nobody has asked for, only that is pending which
    was dismissed, or swept. What fails to be written stays pending, by not being noted as written.
    """

    __slots__ = ("_loaded", "_matches", "actual", "desired", "pending")

    def __init__(self, matches: Callable[[D, A], bool] = operator.eq) -> None:
        """``matches``: whether an actual value that is not equal to the desired one will do all the same."""
        self._matches = matches
        self._loaded = False
        self.desired: dict[K, D] = {}
        self.actual: dict[K, A] = {}
        """As last read or written; nothing is known before the first :meth:`load`."""
        self.pending: set[K] = set()

    # --- what is desired -----------------------------------------------------------------------------

    def desire(self, key: K, value: D, *, doubtful: bool = False) -> None:
        """The key must have this value. ``doubtful``: its actual value may be another by now than is known."""
        self.desired[key] = value
        actual = self.actual.get(key, _ABSENT)
        if not doubtful and (actual == value or (actual is not _ABSENT and self._matches(value, actual))):
            self.pending.discard(key)
        else:
            self.pending.add(key)

    def dismiss(self, key: K) -> None:
        """The key must not be; before the first :meth:`load` it may be there."""
        self.desired.pop(key, None)
        if key in self.actual or not self._loaded:
            self.pending.add(key)
        else:
            self.pending.discard(key)

    def dismiss_all(self) -> None:
        """None of the keys that there are must be."""
        self.desired.clear()
        self.pending = set(self.actual)

    def forget(self, key: K) -> None:
        """Nobody cares any more what the key is; it becomes a stray."""
        self.desired.pop(key, None)
        self.pending.discard(key)

    def hold(self: Delta[K, A, A]) -> None:
        """Desire what there is."""
        self.desired = dict(self.actual)
        self.pending.clear()

    def release(self) -> None:
        """Desire nothing; what there is becomes strays."""
        self.desired.clear()
        self.pending.clear()

    def sweep(self, keep: Container[K] = ()) -> None:
        """Strays must not be, but for those to ``keep``."""
        self.pending.update(key for key in self.actual.keys() - self.desired.keys() if key not in keep)

    # --- what there is -------------------------------------------------------------------------------

    def load(self, actual: dict[K, A]) -> Found[K]:
        """Take over what was read, and return what somebody else has changed since the last time.

        What was pending is no such change; nor is anything that the first call finds.
        """
        differing: list[K] = []
        if actual != self.desired:  # a comparison of dicts costs a third of what the loop does
            get, matches = actual.get, self._matches
            differing = [
                key
                for key, value in self.desired.items()
                if (now := get(key, _ABSENT)) != value and (now is _ABSENT or not matches(value, now))
            ]
        before, first = self.actual, not self._loaded
        found: Found[K] = Found()
        if not first and before != actual:
            changed = (key for key in differing if before.get(key, _ABSENT) != actual.get(key, _ABSENT))
            lost = [key for key in changed if key not in self.pending]
            found = Found(lost, actual.keys() - before.keys() - self.desired.keys())
        dismissed = [key for key in self.pending if key in actual and key not in self.desired]
        self.actual, self.pending, self._loaded = actual, {*differing, *dismissed}, True
        return found

    # --- what is to be written -----------------------------------------------------------------------

    def updates(self) -> list[K]:
        """Keys to be written."""
        return [key for key in self.pending if key in self.desired]

    def deletions(self) -> list[K]:
        """Keys to be deleted."""
        return [key for key in self.pending if key in self.actual and key not in self.desired]

    def written(self, values: Mapping[K, A]) -> None:
        """Some keys have their desired values now: these."""
        self.pending.difference_update(values)
        self.actual.update(values)

    def removed(self, keys: Iterable[K]) -> None:
        """Some keys are not there any more."""
        for key in keys:
            self.actual.pop(key, None)
            if key in self.desired:
                self.pending.add(key)
            else:
                self.pending.discard(key)
