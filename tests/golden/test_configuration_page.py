"""``docs/settings.md`` is what the table of settings gives.

``UPDATE_GOLDEN=1 pytest tests/golden`` writes it anew; the diff is then the review.
"""

from __future__ import annotations

import enum
import os
from pathlib import Path

from felix_py.config import SETTINGS
from felix_py.settings import Setting

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

HEAD = """\
# Settings of `felix-py agent`

Made from `felix_py/config.py` (`UPDATE_GOLDEN=1 make test TESTS=tests/golden`).

{taken} What some of them need besides: [Changing settings](operations.md#changing-settings).
An option counts before its environment variable. A list is given by repeating the option, and in the environment
separated by spaces; `none` is the empty list. `/status` shows what an agent runs with (`configuration.settings`).

Calico's names are those of FelixConfiguration's fields or of Felix's parameters; the nearest, where there is one.

| option, environment | value | default | meaning | Calico |
|---|---|---|---|---|
"""


def page() -> str:
    live = [f"`{it.option}`" for it in SETTINGS.values() if it.live]
    taken = f"All but {', '.join(live)} take" if live else "All take"
    return HEAD.format(taken=f"{taken} effect at the agent's next start.") + "".join(map(row, SETTINGS.values()))


def row(it: Setting) -> str:
    option = f"`{it.option}`" + (f", `--no-{it.option[2:]}`" if it.type is bool else "")
    names = ", ".join(f"`{name}`" for name in it.environment)
    default = it.otherwise or f"`{it.text(it.default)}`"
    cells = (f"{option}<br>{names}", value(it), default, it.meaning, it.calico)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def value(it: Setting) -> str:
    if it.type is bool:
        return "`true`, `false`"
    if isinstance(it.type, type) and issubclass(it.type, enum.Enum):
        return ", ".join(f"`{one.value}`" for one in it.type)
    least = "" if it.least is None else f", {it.least:g} at least"
    return it.metavar + (least if it.most is None else f", {it.least:g} to {it.most:g}")


def test_page_is_what_the_table_gives() -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        PAGE.write_text(page())
    assert page() == PAGE.read_text()
