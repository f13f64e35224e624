"""What the benchmarks share: several ways to do one thing, timed in turn, and a table with ratios."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

console = Console(width=None if Console().is_terminal else 110)


@dataclass(slots=True)
class Row:
    """One measured thing, one value a run. ``base``: the row that ratios are taken against."""

    what: str
    values: list[float] = field(default_factory=list)
    base: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """Of all runs."""
        return statistics.median(self.values)


@dataclass(slots=True)
class Way:
    """One way to do the thing that is measured. ``before`` and ``after`` each run are not counted.

    ``share``: how many operations one run does; values are for one of them.
    """

    what: str
    run: Callable[[], object]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    base: bool = False
    note: str = ""
    share: int = 1


def compare(ways: Sequence[Way], times: int, clock: Callable[[], float] = time.perf_counter) -> list[Row]:
    """Time all ways in turn (A B A B …), so that a drift of the machine's speed hits all of them alike.

    One uncounted warm-up each. Returns a row of seconds for each way.
    """
    rows = [Row(way.what, base=way.base, note=way.note) for way in ways]
    for counted in range(times + 1):
        for row, way in zip(rows, ways, strict=True):
            way.before()
            gc.collect()
            started = clock()
            way.run()
            seconds = clock() - started
            way.after()
            if counted:
                row.values.append(seconds / way.share)
    return rows


def duration(seconds: float) -> str:
    """A time for people: us, ms or s."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms")):
        if seconds < limit:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{_three_digits(seconds)} s"


def megabytes(size: float) -> str:
    """Bytes for people."""
    return f"{_three_digits(size / 1e6)} MB"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.1g}"


def resident() -> int:
    """Bytes of memory that this process has in RAM."""
    return _memory("VmRSS")


def peak_resident() -> int:
    """The most that it ever had. Not ru_maxrss: that counts what the parent had, too."""
    return _memory("VmHWM")


def _memory(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024


def show(title: str, rows: Sequence[Row], unit: Callable[[float], str] = duration) -> None:
    """Print a table: the ratio of each row's median to the base row's, then median, least and most.

    To a base that is too little to be measured there is no ratio.
    """
    base = next((row.median for row in rows if row.base), None)
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for column in ("ratio", "median", "min", "max"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("note")
    for row in rows:
        ratio = _ratio(1.0) if row.base else _ratio(row.median / base) if base else ""
        values = (row.median, min(row.values), max(row.values))
        table.add_row(row.what, ratio, *(unit(value) for value in values), row.note)
    console.print(table)
