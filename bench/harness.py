"""What the benchmarks share: repeated timings, a table with ratios, an isolated place to run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

console = Console()


@dataclass(slots=True)
class Row:
    """One measured thing. ``seconds``: each run's time; ``base``: what the ratio is taken against."""

    what: str
    seconds: list[float] = field(default_factory=list)
    base: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


def measure(run: Callable[[], object], times: int, before: Callable[[], object] | None = None) -> list[float]:
    """Wall seconds of each run, after one warm-up; ``before`` runs before each and is not counted."""
    seconds = []
    for counted in range(times + 1):
        if before:
            before()
        gc.collect()
        started = time.perf_counter()
        run()
        if counted:
            seconds.append(time.perf_counter() - started)
    return seconds


def alternate(runs: list[tuple[Row, Callable[[], object]]], times: int) -> list[Row]:
    """Time several ways in turn (A B A B …), so that a drift of the machine's speed hits all of them."""
    for counted in range(times + 1):
        for row, run in runs:
            started = time.perf_counter()
            run()
            if counted:
                row.seconds.append(time.perf_counter() - started)
    return [row for row, _ in runs]


def show(title: str, rows: list[Row]) -> None:
    """Print a table: median, least and most of each row, and its ratio to the base row."""
    base = next((row.median for row in rows if row.base), None)
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for column in ("median", "min", "max", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("note")
    for row in rows:
        ratio = "" if base is None else f"{row.median / base:.2f}"
        values = (row.median, min(row.seconds), max(row.seconds))
        table.add_row(row.what, *(duration(v) for v in values), ratio, row.note)
    console.print(table)


def duration(seconds: float) -> str:
    """A time for people: us, ms or s."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"
