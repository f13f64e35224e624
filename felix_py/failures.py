"""Failures of an apply: looked up by name, grouped by reason, and bounded where they are logged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from felix_py.records import Failure
from felix_py.refs import LinkRef, MemberRef, Ref, RouteRef, SysctlRef, chain_or_set

Name = str | type[Ref]
"""Key of a lookup: the name of a chain, set, address or interface, or a type of ref for all its objects."""

_LISTED = 10
"""Objects named for one reason, in a log line."""
_REASONS = 20
"""Reasons logged at most, one line each."""


class Failures(Collection[Failure]):
    """The failures of one apply, without duplicates, indexed because every waiting CNI call looks them up."""

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        self._all = dict.fromkeys(failures)
        self._by_name: dict[Name, list[Failure]] = {}
        for failure in self._all:
            for name in set(_names(failure.ref)) - {""}:
                self._by_name.setdefault(name, []).append(failure)
        self.objects = sum(failure.count for failure in self._all)
        """Number of objects that the failures stand for."""

    def __iter__(self) -> Iterator[Failure]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, failure: object) -> bool:
        return failure in self._all

    def naming(self, names: Iterable[Name]) -> tuple[Failure, ...]:
        """Failures of objects with one of the names; a member has those of its set, address and interface."""
        return tuple(dict.fromkeys(failure for name in names for failure in self._by_name.get(name, ())))

    def besides(self, known: Failures) -> list[Failure]:
        """Failures that are not in ``known``."""
        return [failure for failure in self._all if failure not in known]


def _names(ref: Ref) -> tuple[Name, ...]:
    match ref:
        case RouteRef(destination):
            return (destination.partition("/")[0],)
        case MemberRef(name, text):
            address, _, interface = text.partition(",")
            return name, address.partition("/")[0], interface
        case LinkRef(name):
            return (name,)
        case SysctlRef():
            return (ref.interface,)
    return type(ref), chain_or_set(ref)


def by_reason(failures: Iterable[Failure]) -> dict[str, list[str]]:
    """Reason -> the first objects that fail for it, and a count of the rest; the commonest reasons first."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.reason, []).append(failure)
    ordered = sorted(groups.items(), key=lambda group: -sum(failure.count for failure in group[1]))
    said = {reason: _named(group) for reason, group in ordered[:_REASONS]}
    if more := [failure for _, group in ordered[_REASONS:] for failure in group]:
        said["further reasons"] = _named(more)
    return said


def _named(group: list[Failure]) -> list[str]:
    named = [str(failure.ref) for failure in group[:_LISTED]]
    more = sum(failure.count for failure in group) - len(named)
    return [*named, f"and {more} more"] if more else named
