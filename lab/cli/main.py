"""``felix-py lab …``: a cluster on this machine, made of network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from felix_py.cli import options
from felix_py.config import ConfigError
from lab.cli import every_node
from lab.cli.options import PASS_ON, Name, StateRoot, after_dashes, errors, lab_of
from lab.state import STATE_ROOT

if TYPE_CHECKING:
    from lab.lab import Lab
    from lab.status import LabStatus

app = typer.Typer(
    name="lab",
    cls=options.PlainGroup,
    help="A cluster on this machine: nodes in network namespaces, a real router, kubectl.",
    short_help="A cluster on this machine, to try things.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_PROTOCOLS = ("TCP", "UDP")


@app.command()
def up(
    nodes: Annotated[
        int | None,
        typer.Option(min=1, max=100, metavar="N", help="How many nodes. [default: 2]", show_default=False),
    ] = None,
    ipv6: Annotated[bool, typer.Option("--ipv6", help="IPv6 only.")] = False,
    dual_stack: Annotated[bool, typer.Option("--dual-stack", help="IPv4 and IPv6.")] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="auto|legacy|nft", help="iptables backend of the nodes. [default: auto]", show_default=False
        ),
    ] = None,
    no_pods: Annotated[bool, typer.Option("--no-pods", help="Start no example pods.")] = False,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Bring a lab up. One that is there keeps its shape; what of it has died is started again."""
    with errors():
        from lab.build import Options

        if ipv6 and dual_stack:
            raise ConfigError("--ipv6 and --dual-stack exclude each other")
        if backend is not None:
            options.backend(backend)
        it = lab_of(name, state_root)
        shape = it.shape(nodes, (6,) if ipv6 else (4, 6) if dual_stack else None, backend)
        wanted = Options(shape, None) if no_pods else Options(shape)
        with _progress() as say:
            made = it.up(wanted, say)
        _show_end(it, made)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A spinner with the current step on a terminal; a line for each step elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: typer.echo(f"… {step}", err=True)
        return
    done: list[str] = []
    with console.status("checking this machine") as status:

        def say(step: str) -> None:
            if done:
                console.print(f"[green]✓[/green] {done[-1]}")
            done.append(step)
            status.update(step)

        yield say
        if done:
            console.print(f"[green]✓[/green] {done[-1]}")


def _show_end(it: Lab, made: bool) -> None:
    option = "" if it.name == "lab" else f" --name {it.name}"
    apply = "manifests/examples/10-default-deny.yaml"
    from lab.status import collect

    typer.echo(f"lab {it.name!r} is up{'' if made else ' already'}: {it.record().shape}\n")
    _print_status(collect(it, verify=False))
    typer.echo(
        f"""
Try:
  felix-py lab kubectl{option} -- get pods -A -o wide
  felix-py lab exec{option} tor -- birdc show route
  felix-py lab explain{option} -n shop web-1 db-1
  felix-py lab kubectl{option} -- apply -f {apply} && felix-py lab matrix{option}

`felix-py lab down{option}` removes it all."""
    )


@app.command()
def down(
    every: Annotated[bool, typer.Option("--all", help="All labs.")] = False,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Remove a lab, whatever state it is in."""
    with errors():
        names = lab_of("lab", state_root).all_names() if every else [name]
        for one in names:
            removed = lab_of(one, state_root).down()
            typer.echo(f"lab {one!r} is gone" if removed else f"there is no lab {one!r}")


@app.command()
def status(
    output: options.Output = options.OutputFormat.TEXT,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not compare kernels: faster.")] = False,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Say what of a lab works, what does not, and what to do.

    Programs, agents and their problems, kernels beside what they should hold, BGP sessions, pods and their
    interfaces. Exit code 1 when something is not as it should be.
    """
    with errors():
        from lab.cli import status_report
        from lab.status import collect

        it = lab_of(name, state_root)
        with options.patience("felix-py lab status: asking nodes and comparing their kernels …"):
            found = collect(it, verify=not no_verify)
        if output is options.OutputFormat.JSON:
            typer.echo(json.dumps(status_report.as_json(found), indent=2))
        else:
            _print_status(found)
    if status_report.problems(found):
        raise typer.Exit(1)


def _print_status(found: LabStatus) -> None:
    from rich.console import Console

    from lab.cli.status_report import show

    show(found, Console())


app.command()(every_node.explain)
app.command()(every_node.denies)
app.command()(every_node.verify)
app.command()(every_node.plan)


@app.command(context_settings=PASS_ON)
def kubectl(
    arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENT", help="What to pass on, after --.")],
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Run kubectl against the lab.

    For example: felix-py lab kubectl -- get pods -A. Options of our own go before the --. The exit code is
    kubectl's.
    """
    with errors():
        from lab.requirements import check_kubectl

        program = check_kubectl()
        environment = lab_of(name, state_root).kubectl_environment()
        os.execve(program, ["kubectl", *after_dashes(arguments)], environment)


@app.command("exec", context_settings=PASS_ON)
def execute(
    target: Annotated[str, typer.Argument(metavar="tor|NODE|NAMESPACE/POD", help="Where.")],
    command: Annotated[list[str], typer.Argument(metavar="WORD", help="The command, after --.")],
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Run a command on the router, on a node or in a pod.

    For example: felix-py lab exec tor -- birdc show route. In a pod, the command is this machine's own, with the
    pod's network. On a node, felix-py and kubectl need no options. It starts in the folder you are in, for files
    by their relative names. The exit code is the command's.
    """
    with errors():
        it = lab_of(name, state_root)
        # nsenter leaves a program in /; a node need not see every folder, and this one may have been deleted.
        here = os.readlink("/proc/self/cwd")
        same_folder = ["sh", "-c", 'cd "$1" 2>/dev/null; shift; exec "$@"', "sh", here]
        argv = [*it.enter(target), *same_folder, *after_dashes(command)]
        os.execvpe(argv[0], argv, it.environment(target))


@app.command()
def matrix(
    port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            metavar="PORT",
            help="One port for all. [default: each pod's first container port]",
            show_default=False,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="TCP|UDP",
            help="One protocol for all. [default: that of the port, else TCP]",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="How long to wait for each answer.")
    ] = 0.5,
    output: options.Output = options.OutputFormat.TEXT,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Who reaches whom, beside what policy says.

    Every pair is tried with a real connection. Exit code 1 where packets and policy differ.
    """
    with errors():
        from lab.matrix import run_matrix
        from policy.model import Protocol

        if protocol is not None and protocol.upper() not in _PROTOCOLS:
            raise ConfigError(f"--protocol {protocol}: must be TCP or UDP")
        wanted = Protocol(protocol.upper()) if protocol else None
        cells = asyncio.run(run_matrix(lab_of(name, state_root), wanted, port, timeout))
        _print_matrix(cells, output is options.OutputFormat.JSON)
    if any(cell.differs for cell in cells):
        raise typer.Exit(1)


def _print_matrix(cells: list[Any], as_json: bool) -> None:
    from rich.console import Console

    from lab import matrix_report

    if as_json:
        typer.echo(json.dumps(matrix_report.as_json(cells), indent=2))
    elif not cells:
        typer.echo("no pods to try; start some with `felix-py lab kubectl -- apply -f …`")
    else:
        console, tables = Console(), matrix_report.as_tables(cells)
        # A table that is broken to fit is no table: the terminal may wrap it, or people scroll.
        console.width = max(console.width, console.measure(tables).maximum)
        console.print(tables)


@app.command()
def logs(
    machine: Annotated[str, typer.Argument(metavar="tor|NODE", help="Whose.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    component: Annotated[
        str | None,
        typer.Option(
            metavar="PROGRAM",
            help="agent or bgp; on tor bird; the lab's own kubelet, apiserver, keeper. [default: agent, bird]",
            show_default=False,
        ),
    ] = None,
    name: Name = "lab",
    state_root: StateRoot = STATE_ROOT,
) -> None:
    """Print a program's log."""
    with errors():
        path = lab_of(name, state_root).log_file(machine, component or ("bird" if machine == "tor" else "agent"))
        os.execvp("tail", ["tail", "-n", "+1", *(["-F"] if follow else []), str(path)])


for _command in app.registered_commands:
    _command.cls = options.PlainHelp
