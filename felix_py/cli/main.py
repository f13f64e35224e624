"""``felix-py``: the commands and how they end.

Exit codes: 0 done, 1 the answer is "no" or something failed, 2 the call itself was wrong.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import typer
from typer.core import TyperGroup

from felix_py.cli.agent import agent
from felix_py.cli.bgp import app as bgp
from felix_py.cli.cleanup import cleanup
from felix_py.cli.denies import denies
from felix_py.cli.diags import diags
from felix_py.cli.drain import drain, undrain
from felix_py.cli.explain import explain
from felix_py.cli.install_cni import install_cni
from felix_py.cli.ipam import app as ipam
from felix_py.cli.options import PlainHelp, fail
from felix_py.cli.plan import plan
from felix_py.cli.sidecar import bgp_sidecar
from felix_py.cli.status import status
from felix_py.cli.verify import verify


class _Commands(TyperGroup):
    """The commands; in the source tree also the lab's, loaded on use.

    ``Any`` stands for types of typer's own click, which have no public name.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the help."""
        return [*super().list_commands(ctx), *(["lab"] if find_spec("lab") else [])]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name; exits with 1 if it is the lab and not installed."""
        if cmd_name != "lab":
            return super().get_command(ctx, cmd_name)
        try:
            from lab.cli.main import app as lab
        except ModuleNotFoundError as error:
            if error.name not in ("lab", "lab.cli"):
                raise  # a module that the lab needs
            fail("lab", _NO_LAB, 1)
        return typer.main.get_command(lab)


_NO_LAB = (
    "the lab is part of the source tree, not of the installed package: "
    "clone the repository and run `make lab` there"
)

app = typer.Typer(
    name="felix-py",
    cls=_Commands,
    help="Pure layer-3 networking and network policy for Kubernetes nodes.",
    no_args_is_help=True,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # Plain help: in boxes, names of environment variables are cut off on a terminal of 80 columns.
    rich_markup_mode=None,
    epilog="Exit codes: 0 done, 1 the answer is no or something failed, 2 the call itself was wrong.",
)
app.command()(agent)
app.command("bgp-sidecar")(bgp_sidecar)
app.command("install-cni")(install_cni)
app.command()(cleanup)
app.command()(denies)
app.command()(status)
app.command()(explain)
app.command()(verify)
app.command()(diags)
app.command()(plan)
app.command()(drain)
app.command()(undrain)
app.add_typer(bgp, name="bgp")
app.add_typer(ipam, name="ipam")
for command in app.registered_commands:
    command.cls = PlainHelp


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
