"""Tables of text: columns as wide as they must be, within a terminal's width."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_FEWEST = 14
"""Least width of a shortened column."""


def columns(
    rows: Sequence[Sequence[str]], width: int | None = None, shortened: Collection[int] = ()
) -> list[str]:
    """Lines of a table, whose first row is the header.

    Where a line is longer than ``width`` (None: there is no limit), the columns ``shortened`` lose letters in
    their middle, the widest first, and then the last column does.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    over = 0 if width is None else sum(widths) + 2 * (len(widths) - 1) - width
    for column in sorted(shortened, key=lambda one: -widths[one]):
        less = max(0, min(over, widths[column] - _FEWEST))
        widths[column] -= less
        over -= less
    if over > 0:
        widths[-1] = max(_FEWEST, widths[-1] - over)
    return ["  ".join(_fit(cell, room) for cell, room in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fit(text: str, room: int) -> str:
    if len(text) <= room:
        return text.ljust(room)
    head = (room - 1) // 2
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"
