"""What somebody else has changed about a set: what it was right about before, and what is there now. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from felix_py.dataplane import ipset_members as members
from felix_py.dataplane.ipset_commands import Shape
from felix_py.records import Drift, SetSpec
from felix_py.refs import MemberRef, MembersRef, SetRef

_MOST_NAMED = 10
"""Members of one set that get a record of their own; the others share one."""


def set_drift(name: str, shape: Shape | None) -> Drift:
    """A set that was right, and is gone or has another shape now. Its members are not counted as well."""
    kind = "" if shape is None else f"{shape.type}{' with marks' * shape.marked} for {shape.most} members"
    how = f"made anew as {kind}" if kind else "missing"
    return Drift(SetRef(name), how)


def stray_set(name: str, shape: Shape) -> Drift:
    """A set of our names that nobody asked for."""
    return Drift(SetRef(name), f"nobody asked for it ({shape.type})")


def member_drift(
    name: str, spec: SetSpec, wanted: Mapping[bytes, int], before: Mapping[bytes, int], now: Mapping[bytes, int]
) -> Iterator[Drift]:
    """The members of a set of the wanted shape (key -> value): wanted, as last seen or written, as read now."""
    if before == now:
        return
    lost = [key for key, value in wanted.items() if before.get(key) == value != now.get(key)]
    yield from _named(name, ((key, "another mark" if key in now else "missing") for key in lost), len(lost))
    strays = [
        key
        for raw in now.keys() - before.keys() - wanted.keys()
        # The same element in another spelling is one that is missing, and counted there.
        if (key := members.canonical(spec.type, spec.family, raw)) not in wanted
    ]
    yield from _named(name, ((key, "nobody asked for it") for key in strays), len(strays))


def _named(name: str, found: Iterable[tuple[bytes, str]], count: int) -> Iterator[Drift]:
    for at, (key, how) in enumerate(found):
        if at == _MOST_NAMED:
            yield Drift(MembersRef(name), f"{count - at} more members like this", count - at)
            return
        yield Drift(MemberRef(name, members.decode(key)), how)
