"""``felix-py``: the commands and how they end.

Exit codes: 0 done, 1 the answer is "no" or something failed, 2 the call itself was wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer

from felix_py.cli.options import PlainGroup, PlainHelp, fail

_COMMANDS = {
    "agent": ("agent", "agent"),
    "bgp-sidecar": ("sidecar", "bgp_sidecar"),
    "install-cni": ("install_cni", "install_cni"),
    "cleanup": ("cleanup", "cleanup"),
    "denies": ("denies", "denies"),
    "status": ("status", "status"),
    "explain": ("explain", "explain"),
    "verify": ("verify", "verify"),
    "diags": ("diags", "diags"),
    "plan": ("plan", "plan"),
    "drain": ("drain", "drain"),
    "undrain": ("drain", "undrain"),
    "bgp": ("bgp", "app"),
    "ipam": ("ipam", "app"),
}
"""Name -> module of felix_py.cli and its function, or group of commands; in the order of the help."""

_NO_LAB = (
    "the lab is part of the source tree, not of the installed package: "
    "clone the repository and run `make lab` there"
)


class _Commands(Mapping[str, Any]):
    """Makes a command when it is asked for: all modules and options would be most of a command's time.

    In the source tree it also has the lab's. ``Any`` stands for types of typer's own click, which have no public
    name.
    """

    def __getitem__(self, name: str) -> Any:
        """Raises KeyError, or exits with 1 if it is the lab and not installed."""
        if name == "lab":
            return typer.main.get_command(_lab())
        module, attribute = _COMMANDS[name]
        found = getattr(import_module(f"felix_py.cli.{module}"), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(name, cls=PlainHelp)(found)
            found = single
        return typer.main.get_command(found)

    def __iter__(self) -> Iterator[str]:
        yield from _COMMANDS
        if find_spec("lab"):
            yield "lab"

    def __len__(self) -> int:
        return len(list(iter(self)))


def _lab() -> typer.Typer:
    try:
        from lab.cli.main import app as lab
    except ModuleNotFoundError as error:
        if error.name not in ("lab", "lab.cli"):
            raise  # a module that the lab needs
        fail("lab", _NO_LAB, 1)
    return lab


class _Group(PlainGroup):
    def __init__(self, **attributes: Any) -> None:
        commands: Any = _Commands()
        super().__init__(**attributes)
        self.commands = commands


app = typer.Typer(
    name="felix-py",
    cls=_Group,
    help="Pure layer-3 networking and network policy for Kubernetes nodes.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # Plain help: in boxes, names of environment variables are cut off on a terminal of 80 columns.
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the answer is no or something failed, 2 the call itself was wrong.",
)


def _print_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        typer.echo(f"felix-py {version('felix-py')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
