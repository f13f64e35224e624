"""What the commands of ``felix-py lab`` share: which lab, and how they fail."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from felix_py.config import ConfigError

if TYPE_CHECKING:
    from lab.lab import Lab

PASS_ON = {"allow_interspersed_args": False, "ignore_unknown_options": True}

Name = Annotated[
    str, typer.Option("--name", envvar="FELIX_PY_LAB", metavar="LAB", help="Which lab; labs stand side by side.")
]
StateRoot = Annotated[
    Path,
    typer.Option(
        "--state-root",
        envvar="FELIX_PY_LAB_STATE_ROOT",
        metavar="FOLDER",
        help="Where labs keep their state.",
        readable=False,  # root's alone; who is not root is told that
    ),
]


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Errors that people can do something about become one message and exit code 1; wrong calls 2."""
    from lab.state import LabError
    from lab.topology import BadName

    try:
        yield
    except (BadName, ConfigError) as error:
        typer.echo(f"felix-py lab: {error}", err=True)
        raise typer.Exit(2) from None
    except LabError as error:
        typer.echo(f"felix-py lab: {error}", err=True)
        raise typer.Exit(1) from None


def lab_of(name: str, state_root: Path) -> Lab:
    """The lab that the options name.

    Raises:
        BadName: no lab can have that name.
    """
    from lab.lab import Lab

    return Lab(name, state_root)


def after_dashes(words: list[str]) -> list[str]:
    """The words without the ``--`` that may stand before them."""
    return words[1:] if words[:1] == ["--"] else words
