"""Drift of a set that was right before. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from felix_py.dataplane.delta import Delta, Found
from felix_py.dataplane.ipset_commands import Shape
from felix_py.netlink import ipset_members as members
from felix_py.records import Drift, SetSpec
from felix_py.refs import MemberRef, MembersRef, SetRef

_MOST_NAMED = 10
"""Members of one set that get a record each; the others share one."""


def set_drift(name: str, shape: Shape | None) -> Drift:
    """Drift of a set that is gone or has another shape; its members are not reported as well."""
    if shape is None:
        return Drift(SetRef(name), "missing")
    marks = " with marks" * shape.marked
    return Drift(SetRef(name), f"made anew as {shape.type}{marks} for {shape.most} members")


def stray_set(name: str, shape: Shape) -> Drift:
    """Drift of a set with our prefix that is not wanted."""
    return Drift(SetRef(name), f"nobody asked for it ({shape.type})")


def member_drift(spec: SetSpec, found: Found[bytes], now: Delta[bytes, int, int]) -> Iterator[Drift]:
    """Drift of the members of a set that has the wanted shape."""
    lost = ((key, "another mark" if key in now.actual else "missing") for key in found.lost)
    yield from _named(spec.name, lost, len(found.lost))
    strays = [
        key
        for raw in found.strays
        # The same element in another encoding is counted as lost.
        if (key := members.canonical(spec.type, spec.family, raw)) not in now.desired
    ]
    yield from _named(spec.name, ((key, "nobody asked for it") for key in strays), len(strays))


def _named(name: str, found: Iterable[tuple[bytes, str]], count: int) -> Iterator[Drift]:
    for at, (key, how) in enumerate(found):
        if at == _MOST_NAMED:
            yield Drift(MembersRef(name), f"{count - at} more members like this", count - at)
            return
        yield Drift(MemberRef(name, members.decode(key)), how)
