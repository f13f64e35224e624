"""What a command makes of a plain value is what typer makes of it, errors included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.cli.main import app
from tests.support.thorough import examples

GROUP: Any = typer.main.get_command(app)
CONTEXT: Any = typer.Context(GROUP, info_name="felix-py")
WORDS = ["true", "False", "1", "0", "", "nft", "drop", "text", "/", "none", "-", "nan", "1e3", "1_0", " 1"]
TEXTS = st.one_of(
    st.sampled_from(WORDS),
    st.integers(-(10**6), 10**6).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8),
)
Convert = Callable[[Any, Any], Any]


def conversions(command: Any) -> list[tuple[Any, Convert, Convert]]:
    """Of each option and argument of a command and its commands: typer's way and ours."""
    before = {param: param.process_value for param in command.params}
    ours = {param: param.process_value for param in command.get_params(CONTEXT)}
    found = [(param, by_typer, ours[param]) for param, by_typer in before.items() if param.callback is None]
    for inner in getattr(command, "commands", {}).values():
        found += conversions(inner)
    return found


CONVERSIONS = conversions(GROUP)


def outcome(convert: Convert, value: object) -> object:
    try:
        made = convert(CONTEXT, value)
    except Exception as error:
        return type(error), str(error)
    return repr(made)


@given(st.sampled_from(CONVERSIONS), TEXTS, st.lists(TEXTS, max_size=3))
@settings(max_examples=examples(1000))
def test_given_values(conversion: tuple[Any, Convert, Convert], text: str, several: list[str]) -> None:
    param, by_typer, ours = conversion
    value = several if param.multiple or param.nargs == -1 else text
    assert outcome(ours, value) == outcome(by_typer, value)


def test_absent_values() -> None:
    for param, by_typer, ours in CONVERSIONS:
        for value in (None, param.get_default(CONTEXT)):
            assert outcome(ours, value) == outcome(by_typer, value), param.name


def test_a_command_loads_neither_pydantic_for_plain_values_nor_other_commands(tmp_path: Path) -> None:
    code = (
        "import sys; from felix_py.cli import main; sys.argv[0] = 'felix-py'\n"
        "try: main()\nfinally: print({'pydantic', 'felix_py.cli.plan'} & {*sys.modules})"
    )
    words = ["install-cni", "--cni-bin-dir", str(tmp_path), "--socket", str(tmp_path / "cni.sock")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "set()"), done.stderr
