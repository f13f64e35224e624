"""``felix-py lab …``: a cluster on this machine, made of network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from felix_py.config import ConfigError

if TYPE_CHECKING:
    from felix_py.lab.lab import Lab

lab = typer.Typer(
    name="lab",
    help="A cluster on this machine: nodes in network namespaces, a real router, kubectl.",
    short_help="A cluster on this machine, to try things.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PASS_ON = {"allow_interspersed_args": False, "ignore_unknown_options": True}
_PROTOCOLS = ("TCP", "UDP")

Name = Annotated[
    str, typer.Option("--name", envvar="FELIX_PY_LAB", metavar="LAB", help="Which lab; labs stand side by side.")
]
StateRoot = Annotated[
    Path,
    typer.Option(
        "--state-root", envvar="FELIX_PY_LAB_STATE_ROOT", metavar="FOLDER", help="Where labs keep their state."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_ROOT = Path("/run/felix-py-lab")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Errors that people can do something about become one message and exit code 1; wrong calls 2."""
    from felix_py.lab.state import LabError
    from felix_py.lab.topology import BadName

    try:
        yield
    except (BadName, ConfigError) as error:
        typer.echo(f"felix-py lab: {error}", err=True)
        raise typer.Exit(2) from None
    except LabError as error:
        typer.echo(f"felix-py lab: {error}", err=True)
        raise typer.Exit(1) from None


def _lab(name: str, state_root: Path) -> Lab:
    from felix_py.lab.lab import Lab

    return Lab(name, state_root)


@lab.command()
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
    state_root: StateRoot = _ROOT,
) -> None:
    """Bring a lab up. One that is there keeps its shape; what of it has died is started again."""
    with _errors():
        from felix_py.lab.build import Options

        if ipv6 and dual_stack:
            raise ConfigError("--ipv6 and --dual-stack exclude each other")
        if backend not in (None, "auto", "legacy", "nft"):
            raise ConfigError(f"--backend {backend}: must be auto, legacy or nft")
        it = _lab(name, state_root)
        shape = it.shape(nodes, (6,) if ipv6 else (4, 6) if dual_stack else None, backend)
        options = Options(shape, None) if no_pods else Options(shape)
        with _progress() as say:
            made = it.up(options, say)
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
    typer.echo(f"lab {it.name!r} is up{'' if made else ' already'}: {it.record().shape}\n")
    _print_status(it)
    typer.echo(
        f"""
Try:
  felix-py lab kubectl{option} -- get pods -A -o wide
  felix-py lab exec{option} tor -- birdc show route
  felix-py lab exec{option} node1 -- felix-py explain -n shop web-1 db-1
  felix-py lab kubectl{option} -- apply -f {apply} && felix-py lab matrix{option}

`felix-py lab down{option}` removes it all."""
    )


@lab.command()
def down(
    every: Annotated[bool, typer.Option("--all", help="All labs.")] = False,
    name: Name = "lab",
    state_root: StateRoot = _ROOT,
) -> None:
    """Remove a lab, whatever state it is in."""
    with _errors():
        names = _lab("lab", state_root).all_names() if every else [name]
        for one in names:
            removed = _lab(one, state_root).down()
            typer.echo(f"lab {one!r} is gone" if removed else f"there is no lab {one!r}")


@lab.command()
def status(as_json: Json = False, name: Name = "lab", state_root: StateRoot = _ROOT) -> None:
    """What runs. Exit code 1 when something of it does not."""
    with _errors():
        from felix_py.lab.status import collect

        it = _lab(name, state_root)
        found = collect(it)
        if as_json:
            typer.echo(json.dumps(found.as_json(), indent=2))
        else:
            _print_status(it)
    if not found.healthy:
        raise typer.Exit(1)


def _print_status(it: Lab) -> None:
    from rich.console import Console

    from felix_py.lab.status import as_table, collect

    Console().print(as_table(collect(it)))


@lab.command(context_settings=_PASS_ON)
def kubectl(
    arguments: Annotated[list[str], typer.Argument(metavar="ARGUMENT", help="What to pass on, after --.")],
    name: Name = "lab",
    state_root: StateRoot = _ROOT,
) -> None:
    """Run kubectl against the lab.

    For example: felix-py lab kubectl -- get pods -A. Options of our own go before the --. The exit code is
    kubectl's.
    """
    with _errors():
        from felix_py.lab.requirements import check_kubectl

        program = check_kubectl()
        environment = _lab(name, state_root).kubectl_environment()
        os.execve(program, ["kubectl", *_after_dashes(arguments)], environment)


@lab.command("exec", context_settings=_PASS_ON)
def execute(
    target: Annotated[str, typer.Argument(metavar="tor|NODE|NAMESPACE/POD", help="Where.")],
    command: Annotated[list[str], typer.Argument(metavar="WORD", help="The command, after --.")],
    name: Name = "lab",
    state_root: StateRoot = _ROOT,
) -> None:
    """Run a command on the router, on a node or in a pod.

    For example: felix-py lab exec tor -- birdc show route. In a pod, the command is this machine's own, with the
    pod's network. On a node, felix-py and kubectl need no options. It starts in the folder you are in, for files
    by their relative names. The exit code is the command's.
    """
    with _errors():
        it = _lab(name, state_root)
        # nsenter leaves a program in /; a node need not see every folder, and this one may have been deleted.
        here = os.readlink("/proc/self/cwd")
        same_folder = ["sh", "-c", 'cd "$1" 2>/dev/null; shift; exec "$@"', "sh", here]
        argv = [*it.enter(target), *same_folder, *_after_dashes(command)]
        os.execvpe(argv[0], argv, it.environment(target))


def _after_dashes(words: list[str]) -> list[str]:
    """The words without the ``--`` that may stand before them."""
    return words[1:] if words[:1] == ["--"] else words


@lab.command()
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
    as_json: Json = False,
    name: Name = "lab",
    state_root: StateRoot = _ROOT,
) -> None:
    """Who reaches whom, beside what policy says.

    Every pair is tried with a real connection. Exit code 1 where packets and policy differ.
    """
    with _errors():
        from felix_py.lab.matrix import run_matrix
        from policy.model import Protocol

        if protocol is not None and protocol.upper() not in _PROTOCOLS:
            raise ConfigError(f"--protocol {protocol}: must be TCP or UDP")
        wanted = Protocol(protocol.upper()) if protocol else None
        cells = asyncio.run(run_matrix(_lab(name, state_root), wanted, port, timeout))
        _print_matrix(cells, as_json)
    if any(cell.differs for cell in cells):
        raise typer.Exit(1)


def _print_matrix(cells: list[Any], as_json: bool) -> None:
    from rich.console import Console

    from felix_py.lab import matrix_report

    if as_json:
        typer.echo(json.dumps(matrix_report.as_json(cells), indent=2))
    elif not cells:
        typer.echo("no pods to try; start some with `felix-py lab kubectl -- apply -f …`")
    else:
        console, tables = Console(), matrix_report.as_tables(cells)
        # A table that is broken to fit is no table: the terminal may wrap it, or people scroll.
        console.width = max(console.width, console.measure(tables).maximum)
        console.print(tables)


@lab.command()
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
    state_root: StateRoot = _ROOT,
) -> None:
    """Print a program's log."""
    with _errors():
        path = _lab(name, state_root).log_file(machine, component or ("bird" if machine == "tor" else "agent"))
        os.execvp("tail", ["tail", "-n", "+1", *(["-F"] if follow else []), str(path)])
