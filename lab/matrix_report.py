"""The matrix for people (a coloured table) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lab.matrix import Attempt, Cell, Party
from policy.model import Family
from policy.oracle.evaluate import DirectionVerdict

_MOST_EXPLAINED = 20
_LEGEND = """\
✓ reaches  · blocked, both as policy says
!✓ reaches and should not  !· does not reach and should"""


def as_json(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """One object for each attempt."""
    return [
        {
            "source": cell.attempt.source.name,
            "destination": cell.attempt.destination.name,
            "family": int(cell.attempt.family),
            "address": cell.attempt.destination.addresses[cell.attempt.family],
            "protocol": cell.attempt.port[0],
            "port": cell.attempt.port[1],
            "reached": cell.reached,
            "expected": cell.verdict.allowed,
            "detail": cell.detail,
        }
        for cell in cells
    ]


def as_tables(cells: Sequence[Cell]) -> RenderableType:
    """A table for each family (sources down, destinations across), a legend, and what differs and why."""
    families = sorted({cell.attempt.family for cell in cells})
    parts: list[RenderableType] = [
        _table(family, [cell for cell in cells if cell.attempt.family is family]) for family in families
    ]
    parts.append(Text(_LEGEND, style="dim"))
    wrong = [cell for cell in cells if cell.differs]
    parts += [_explanation(cell) for cell in wrong[:_MOST_EXPLAINED]]
    if len(wrong) > _MOST_EXPLAINED:
        parts.append(Text(f"… and {len(wrong) - _MOST_EXPLAINED} more", "red"))
    return Group(*parts)


def _table(family: Family, cells: Sequence[Cell]) -> Table:
    found = {(cell.attempt.source.name, cell.attempt.destination.name): cell for cell in cells}
    sources = _parties(cell.attempt.source for cell in cells)
    columns = {cell.attempt.destination.name: cell.attempt for cell in cells}
    numbers = {name: number for number, name in enumerate(_parties(a.destination for a in columns.values()), 1)}
    table = Table(
        title=f"IPv{int(family)}: who (down) reaches whom (across)",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    table.add_column("port", justify="right", style="dim", no_wrap=True)
    for number in numbers.values():
        table.add_column(str(number), justify="center", min_width=2, no_wrap=True)
    for source in sources:
        number_text = f"{numbers[source]:>2} " if source in numbers else "   "
        port = _port(columns[source]) if source in columns else ""
        table.add_row(number_text + source, port, *(_cell(found.get((source, name))) for name in numbers))
    return table


def _parties(parties: Iterable[Party]) -> list[str]:
    return list(dict.fromkeys(party.name for party in parties))


def _port(attempt: Attempt) -> str:
    protocol, number = attempt.port
    return f"{number}/{protocol.lower()}"


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("")
    symbol = "✓" if cell.reached else "·"
    if cell.differs:
        return Text(f"!{symbol}", style="bold white on red")
    return Text(symbol, style="green" if cell.reached else "dim")


def _explanation(cell: Cell) -> Text:
    attempt = cell.attempt
    text = Text(
        f"{attempt.source.name} -> {attempt.destination.name} {_port(attempt)} IPv{int(attempt.family)}: ", "red"
    )
    if cell.reached:
        text.append("reaches, but ")
        text.append("; ".join(_denials([cell.verdict.egress, cell.verdict.ingress])), "bold")
    else:
        text.append(f"{cell.detail}, but policy allows it")
    return text


def _denials(ends: Iterable[DirectionVerdict | None]) -> list[str]:
    return [
        f"{end.direction.lower()} is denied by {', '.join(map(str, end.selected_by))}"
        for end in ends
        if end is not None and not end.allowed
    ]
