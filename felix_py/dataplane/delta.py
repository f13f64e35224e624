"""Desired and actual values by key, and the keys to be written. No I/O.

Like felix/deltatracker of Calico: the set of keys that may differ is updated with each change, so that the cost
of an apply depends on the changes, not on the number of keys. A key costs only its places in two dicts.
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
    """Changes by others: keys that were right and are not any more, and new keys that are not desired."""

    lost: Collection[K] = ()
    strays: Collection[K] = ()


class Delta(Generic[K, D, A]):
    """Desired values D and actual values A by key.

    ``pending`` holds the keys whose two values may differ. A key that is not desired is pending only after
    :meth:`dismiss` or :meth:`sweep`. A key whose write fails stays pending, as it is not noted as written.
    """

    __slots__ = ("_loaded", "_matches", "actual", "desired", "pending")

    def __init__(self, matches: Callable[[D, A], bool] = operator.eq) -> None:
        """``matches``: whether an actual value that differs from the desired one is equivalent to it."""
        self._matches = matches
        self._loaded = False
        self.desired: dict[K, D] = {}
        self.actual: dict[K, A] = {}
        """As last read or written; empty before the first :meth:`load`."""
        self.pending: set[K] = set()

    def desire(self, key: K, value: D, *, doubtful: bool = False) -> None:
        """Desire a value. ``doubtful``: the key's actual value may have changed since it was read."""
        self.desired[key] = value
        actual = self.actual.get(key, _ABSENT)
        if not doubtful and (actual == value or (actual is not _ABSENT and self._matches(value, actual))):
            self.pending.discard(key)
        else:
            self.pending.add(key)

    def dismiss(self, key: K) -> None:
        """Desire the key's absence; before the first :meth:`load` it may exist."""
        self.desired.pop(key, None)
        if key in self.actual or not self._loaded:
            self.pending.add(key)
        else:
            self.pending.discard(key)

    def dismiss_all(self) -> None:
        """Desire the absence of all keys."""
        self.desired.clear()
        self.pending = set(self.actual)

    def forget(self, key: K) -> None:
        """Desire nothing of the key; if it exists it is a stray."""
        self.desired.pop(key, None)
        self.pending.discard(key)

    def hold(self: Delta[K, A, A]) -> None:
        """Desire the actual values."""
        self.desired = dict(self.actual)
        self.pending.clear()

    def release(self) -> None:
        """Desire nothing; all existing keys become strays."""
        self.desired.clear()
        self.pending.clear()

    def sweep(self, keep: Container[K] = ()) -> None:
        """Have strays deleted, except those to ``keep``."""
        self.pending.update(key for key in self.actual.keys() - self.desired.keys() if key not in keep)

    def load(self, actual: dict[K, A]) -> Found[K]:
        """Take over the values read; returns what others have changed since the last time.

        A difference of a pending key is no such change, nor is anything that the first call finds.
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

    def updates(self) -> list[K]:
        return [key for key in self.pending if key in self.desired]

    def deletions(self) -> list[K]:
        return [key for key in self.pending if key in self.actual and key not in self.desired]

    def written(self, values: Mapping[K, A]) -> None:
        """Note keys that were written, with their values."""
        self.pending.difference_update(values)
        self.actual.update(values)

    def removed(self, keys: Iterable[K]) -> None:
        """Note keys that do not exist any more."""
        for key in keys:
            self.actual.pop(key, None)
            if key in self.desired:
                self.pending.add(key)
            else:
                self.pending.discard(key)
