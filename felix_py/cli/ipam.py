"""``felix-py ipam``: who has which address of this node, what is left behind, and releases by hand."""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
import textwrap
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from felix_py.cli import options
from felix_py.cli.asking import asked, echo, ending_quietly
from felix_py.cli.bgp import age
from felix_py.cli.tables import columns
from felix_py.config import AgentConfig
from felix_py.layout import FIRST_INTERFACE

Answer = Mapping[str, Any]

_WIDTH = 100
_ID = 13
"""Characters of a container id, as ``crictl pods`` shows."""

_NO_POD = "(no pod)"

_GRACE = 30
"""Seconds between the two looks of ``check --fix``."""

_RUNTIMES = (
    ("crictl", "pods", "--quiet"),
    ("ctr", "--namespace", "k8s.io", "containers", "list", "--quiet"),
)
"""Commands that print the ids of all sandboxes, the first that is installed."""

_ENDS = "Exit codes: 0 done, 1 {no}no agent answers, 2 wrong option."

app = typer.Typer(
    name="ipam",
    cls=options.PlainGroup,
    help="Addresses of this node: who has them, and releases by hand.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    epilog="The node's agent is asked. By its pod: kubectl -n kube-system exec POD -c agent -- felix-py ipam",
)

AsJson = Annotated[bool, typer.Option("--json", help="The same as -o json.")]


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no=""))
def show(
    output: options.Output = options.OutputFormat.TEXT,
    as_json: AsJson = False,
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Show who has which address.

    By CIDR how many are used, free, of the free ones resting, and lent to other nodes; which those are; then each
    lease with its pod.
    """
    answer = _asked(agent_socket, "/ipam", {})
    lines = [] if as_json or output is options.OutputFormat.JSON else shown(answer)
    _print(answer, lines)


@app.command(
    cls=options.PlainHelp, epilog=_ENDS.format(no="something differs, the agent does not know the pods yet, or ")
)
def check(
    fix: Annotated[
        bool,
        typer.Option("--fix", help=f"Release what is lost at both of two looks, {_GRACE} seconds apart."),
    ] = False,
    output: options.Output = options.OutputFormat.TEXT,
    as_json: AsJson = False,
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Compare the leases with everything else.

    With the kernel's interfaces, with the pods that the API has on this node, and with the sandboxes of the
    container runtime, where crictl or ctr is installed. Says each difference in words.

    Lost is a lease whose interface is gone, and whose pod is not on this node any more. The agent releases such a
    lease by itself after five minutes.
    """
    released: list[Answer] = []
    if fix:
        with options.patience(f"looking twice, {_GRACE} seconds apart ..."):
            query = {"grace": str(_GRACE)}
            released = _asked(agent_socket, "/ipam/fix", query, patience=_GRACE + 60, method="POST")["released"]
    leases, answer = _asked(agent_socket, "/ipam", {})["leases"], _asked(agent_socket, "/ipam/check", {})
    unknown, note = forgotten(leases)
    found, missing = [*answer["differences"], *unknown], answer.get("notes", [])
    notes = [*missing, *([note] if note else [])]
    if as_json or output is options.OutputFormat.JSON:
        _print({"differences": found, "released": released, "notes": notes}, [])
    else:
        told = [] if missing and not found else checked(found, len(leases))
        for line in notes:
            typer.echo(f"felix-py ipam: {line}", err=True)
        if lines := [f"released {_words(lease)}" for lease in released] + told:
            _print({}, lines)
    if found or missing:
        raise typer.Exit(1)


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no="it was not released, or "))
def release(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A leased address of this node.")],
    force: Annotated[
        bool,
        typer.Option("--force", help="Also while its interface exists, which is deleted."),
    ] = False,
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Release the lease of an address.

    The other address of the same interface goes with it. While the interface exists, the address is in use: with
    --force the interface is deleted, and its pod cut off. Only root may.
    """
    try:
        ipaddress.ip_address(address)
    except ValueError:
        options.fail("ipam", f"{options.printable(address[:80])!r} is not an address", 2)
    query = {"address": address, **({"force": "1"} if force else {})}
    answer = _asked(agent_socket, "/ipam/release", query, patience=60, method="POST")
    _print({}, [f"released {_words(lease)}" for lease in answer["released"]])


@app.command(cls=options.PlainHelp, epilog="Exit codes: 0 done, 1 nothing is known of it, 2 wrong option.")
def history(
    of: Annotated[
        str, typer.Argument(metavar="ADDRESS|POD", help="Only of one address, NAMESPACE/POD, or POD.")
    ] = "",
    number: Annotated[int, typer.Option("--number", "-n", min=1, metavar="NUMBER", help="At most so many.")] = 50,
    output: options.Output = options.OutputFormat.TEXT,
    as_json: AsJson = False,
    state_dir: options.StateDir = AgentConfig.state_dir,
) -> None:
    """Say who had which address when.

    The last few thousand leases and releases of this node, the newest last. Needs no agent, but root.
    """
    from felix_py.ipam.history import history_of, read_history

    folder = Path(state_dir)
    if not folder.is_dir():
        options.fail("ipam", f"there is no folder {folder}; --state-dir says where the agent's is", 2)
    found = [entry for entry in read_history(history_of(folder / "leases.db")) if _is_of(entry, of)][-number:]
    if as_json or output is options.OutputFormat.JSON:
        import msgspec

        _print({"history": msgspec.to_builtins(found)}, [])
    else:
        _print({}, historic(found) if found else ["nothing is known of it" if of else "no history yet"])
    if not found and of:
        raise typer.Exit(1)


# --- text --------------------------------------------------------------------------------------------


def shown(answer: Answer) -> list[str]:
    """The tables of ``show``."""
    if not answer["cidrs"] and not answer["leases"]:
        return ["this node has no addresses to give, and no pod has one"]
    pools = [
        (
            one["cidr"] + (f" (borrowed of {of})" if (of := one["borrowedOf"]) else ""),
            str(one["used"]),
            _many(one["free"]),
            str(one["resting"]),
            str(one["lent"]),
        )
        for one in answer["cidrs"]
    ]
    now = time.time()
    pods = [
        (
            ", ".join(one["addresses"]),
            _who(one),
            one["interface"],
            one["container"][:_ID],
            age(max(0.0, now - one["created"])),
        )
        for one in answer["leases"]
    ]
    lines = columns([("CIDR", "USED", "FREE", "RESTING", "LENT"), *pools], _WIDTH) if pools else []
    if answer["lent"]:
        rows = [(one["address"], one["node"]) for one in answer["lent"]]
        lines += ["", *columns([("LENT ADDRESS", "TO NODE"), *rows], _WIDTH)]
    if pods:
        head = ("ADDRESSES", "POD", "INTERFACE", "CONTAINER", "AGE")
        lines += ["", *columns([head, *pods], _WIDTH, (1, 0))]
    return lines


def checked(differences: Sequence[Answer], leases: int) -> list[str]:
    """What ``check`` says."""
    if not differences:
        return [f"all is well: {leases} leases, and nothing else has an address of this node"]
    told = (f"{', '.join(one['addresses']) or '(no address)'}: {one['text']}" for one in differences)
    return [line for text in told for line in textwrap.wrap(text, _WIDTH, subsequent_indent="    ")]


def historic(entries: Sequence[Any]) -> list[str]:
    """The table of ``history``."""
    rows = [
        (
            datetime.fromtimestamp(entry.time, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
            entry.what,
            ", ".join(entry.addresses),
            f"{entry.namespace}/{entry.pod}" if entry.pod else _NO_POD,
            entry.container[:_ID],
        )
        for entry in entries
    ]
    return columns([("TIME", "WHAT", "ADDRESSES", "POD", "CONTAINER"), *rows], _WIDTH, (3, 2))


def _many(number: int) -> str:
    """A number of addresses; of IPv6's the power of two."""
    return str(number) if number < 10**7 else f"2^{number.bit_length()}"


def _words(lease: Answer) -> str:
    whose = f"pod {_who(lease)}" if lease["pod"] else f"container {lease['container'][:_ID]}"
    return f"{', '.join(lease['addresses'])} of {whose}"


def _who(lease: Answer) -> str:
    """The pod, and the interface if it is not its first."""
    if not lease["pod"]:
        return _NO_POD
    further = "" if lease["ifname"] == FIRST_INTERFACE else f" {lease['ifname']}"
    return f"{lease['namespace']}/{lease['pod']}{further}"


def _is_of(entry: Any, of: str) -> bool:
    return not of or of in (*entry.addresses, entry.pod, f"{entry.namespace}/{entry.pod}")


# --- asking ------------------------------------------------------------------------------------------


def forgotten(leases: Sequence[Answer]) -> tuple[list[dict[str, Any]], str]:
    """Leases whose sandbox the container runtime does not know, and why it was not asked, or empty."""
    command = next((words for words in _RUNTIMES if shutil.which(words[0])), None)
    if command is None:
        return [], "neither crictl nor ctr is installed here, so the container runtime was not asked"
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"the container runtime was not asked: {error}"
    if done.returncode:
        return [], f"the container runtime was not asked: {options.printable(done.stderr.strip()[-200:])}"
    known = set(done.stdout.split())
    leases = [lease for lease in leases if lease["pod"]]  # other containers may be another runtime's
    if leases and known.isdisjoint(lease["container"] for lease in leases):
        return [], f"{command[0]} knows none of the pods' sandboxes: another container runtime runs them"
    text = "leased to pod {}/{}, of whose sandbox {} the container runtime knows nothing"
    return [
        {
            "addresses": lease["addresses"],
            "text": text.format(lease["namespace"], lease["pod"], lease["container"][:_ID]),
            "lost": False,
        }
        for lease in leases
        if lease["container"] not in known
    ], ""


def _asked(place: str, path: str, query: Mapping[str, str], patience: float = 10, method: str = "GET") -> Answer:
    return asked("ipam", place, path, query, patience, method)


def _print(answer: Answer, lines: Sequence[str]) -> None:
    with ending_quietly():
        for line in lines or [json.dumps(answer, indent=2)]:
            echo(options.printable(line) if lines else line)
