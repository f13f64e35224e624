"""The tables of ``docs/configuration.md`` are what the table of settings gives; the rest is written by hand.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes it anew; the diff is then the review.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

from felix_py.config import SETTINGS
from felix_py.settings import Setting

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

MARK = "<!-- What follows is made from felix_py/config.py: UPDATE_GOLDEN=1 make test TESTS=tests/golden -->\n"

CLUSTER = """
## Settings of the cluster or of a node

| FelixConfiguration | value | built in | changes | meaning | Calico | option, environment |
|---|---|---|---|---|---|---|
"""

HOST = """
## Settings of an agent alone

| option, environment | value | built in | meaning | Calico |
|---|---|---|---|---|
"""


def tables() -> str:
    own = [it for it in SETTINGS.values() if it.field is None]
    of_cluster = [it for it in SETTINGS.values() if it.field is not None]
    return CLUSTER + "".join(map(cluster_row, of_cluster)) + HOST + "".join(map(row, own))


def cluster_row(it: Setting) -> str:
    assert it.field is not None
    words = [f"`{word}`" for word in it.words]
    called = ", ".join(words) + " (a list)" * it.field.choices if words else value(it)
    taken = "at once" if it.live else "restart"
    built_in = it.otherwise or f"`{_shown(it)}`"
    return _row(f"`{it.field.name}`", called, built_in, taken, it.meaning, it.calico, names(it))


def row(it: Setting) -> str:
    return _row(names(it), value(it), it.otherwise or f"`{it.text(it.default)}`", it.meaning, it.calico)


def names(it: Setting) -> str:
    option = f"`{it.option}`" + (f", `--no-{it.option[2:]}`" if it.type is bool else "")
    return f"{option}<br>" + ", ".join(f"`{name}`" for name in it.environment)


def value(it: Setting) -> str:
    if it.type is bool:
        return "`true`, `false`"
    if isinstance(it.type, type) and issubclass(it.type, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in it.type)
    least = "" if it.least is None else f", {it.least:g} at least"
    called = f"list of {it.metavar}" if it.many else it.metavar
    return called + (least if it.most is None else f", {it.least:g} to {it.most:g}")


def _shown(it: Setting) -> str:
    found = it.to_field(it.default)
    return str(found).lower() if isinstance(found, bool) else ", ".join(found) if it.many else str(found)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def test_tables_are_what_the_settings_give() -> None:
    before, mark, after = PAGE.read_text().partition(MARK)
    assert mark, f"{PAGE} has lost the line {MARK}"
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(before + MARK + tables())
        after = tables()
    assert after == tables()
