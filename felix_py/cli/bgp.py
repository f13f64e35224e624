"""``felix-py bgp``: a node's BGP sessions, what it announces, what it learned, and why it routes as it does."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from felix_py.cli import options
from felix_py.cli.asking import Refused, as_object, ask, echo, ending_quietly
from felix_py.cli.tables import columns
from felix_py.config import ConfigError

Answer = Mapping[str, Any]
Rows = Sequence[Sequence[str]]

_ENDS = "Exit codes: 0 done, 1 {no}no agent answers, 2 wrong option."
_MINUTE, _HOUR, _DAY = 60, 3600, 86400

app = typer.Typer(
    help="BGP of this node: sessions, announcements, learned routes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="The node's agent is asked. By its pod: kubectl -n kube-system exec POD -c agent -- felix-py bgp",
)

AsJson = Annotated[bool, typer.Option("--json", help="A JSON object instead of a table.")]


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no="a session is down, or "))
def peers(as_json: AsJson = False, agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET) -> None:
    """List the peers: state, for how long, prefixes, and why a session is down."""
    answer = _asked(agent_socket, "/bgp/peers", {})
    _print(answer, as_json, peer_rows, (5,), "no peers are configured for this node")
    if not all(peer.get("established") for peer in answer.get("peers", ())):
        raise typer.Exit(1)


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no=""))
def routes(as_json: AsJson = False, agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET) -> None:
    """List the best learned routes: prefix and next hops, as they are in the kernel."""
    _print(_asked(agent_socket, "/bgp/routes", {}), as_json, route_rows, (1,), "no routes are learned")


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no=""))
def announced(as_json: AsJson = False, agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET) -> None:
    """List what this node announces, and to whom."""
    _print(_asked(agent_socket, "/bgp/announced", {}), as_json, announced_rows, (1,), "nothing is announced")


# --- tables ------------------------------------------------------------------------------------------


def peer_rows(answer: Answer) -> Rows:
    """The table of peers."""
    return [
        ("PEER", "AS", "STATE", "SINCE", "RECEIVED", "WHY"),
        *(
            (
                str(peer.get("address")),
                str(peer.get("asNumber")),
                "up" if peer.get("established") else "down",
                age(peer.get("sinceSeconds", 0)),
                str(peer.get("prefixesReceived")),
                str(peer.get("reason") or ""),
            )
            for peer in answer.get("peers", ())
        ),
    ]


def route_rows(answer: Answer) -> Rows:
    """The table of learned routes."""
    found = answer.get("routes", ())
    return [("PREFIX", "NEXT HOPS"), *((route["prefix"], ", ".join(route["nextHops"])) for route in found)]


def announced_rows(answer: Answer) -> Rows:
    """The table of announcements."""
    found = answer.get("announced", ())
    return [("PREFIX", "TO"), *((one["prefix"], ", ".join(one["peers"])) for one in found)]


def age(seconds: float) -> str:
    """A time as kubectl's AGE column has it: 12s, 3m, 5h, 2d."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= 2 * unit or (seconds >= unit and unit != _MINUTE):
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds:.0f}s"


# --- asking ------------------------------------------------------------------------------------------


def _asked(place: str, path: str, query: Mapping[str, str]) -> Answer:
    from http.client import HTTPException

    try:
        with ask(place, path, query) as response:
            return as_object(response.read())
    except ConfigError as error:
        options.fail("bgp", str(error), 2)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        options.fail("bgp", f"no agent answers at {place} ({reason}); run it as root on a node with an agent", 1)
    except Refused as error:
        options.fail("bgp", options.printable(str(error)), 1)


def _print(
    answer: Answer, as_json: bool, rows: Callable[[Answer], Rows], shortened: tuple[int, ...], nothing: str
) -> None:
    with ending_quietly():
        if as_json:
            echo(json.dumps(answer, indent=2))
            return
        table = rows(answer)
        if len(table) == 1:
            echo(nothing)
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in columns(table, width, shortened):
            echo(options.printable(line))
