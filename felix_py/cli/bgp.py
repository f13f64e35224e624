"""``felix-py bgp``: a node's BGP sessions, what it announces, what it learned, and why it routes as it does."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from felix_py.cli import options
from felix_py.cli.asking import asked, echo, ending_quietly
from felix_py.cli.bgp_trace import trace
from felix_py.cli.elsewhere import Namespace, Node, on_node
from felix_py.cli.tables import columns

Answer = Mapping[str, Any]
Rows = Sequence[Sequence[str]]

_ENDS = "Exit codes: 0 done, 1 {no}no agent answers, 2 wrong option."
_MINUTE, _HOUR, _DAY = 60, 3600, 86400

app = typer.Typer(
    name="bgp",
    cls=options.PlainGroup,
    help="BGP of this node: sessions, announcements, learned routes.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    epilog="The node's agent is asked. With --node that of another node, by kubectl exec.",
)

AsJson = Annotated[bool, typer.Option("--json", help="A JSON object instead of a table.")]


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no="a session is down, or "))
def peers(
    as_json: AsJson = False,
    node: Node = "",
    namespace: Namespace = "kube-system",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """List the peers.

    State, for how long, prefixes in and out, and why a session is down.
    """
    if node:
        on_node(node, namespace, ["peers", *_flags(as_json)])
    answer = asked("bgp", agent_socket, "/bgp/peers", {})
    _print(answer, as_json, peer_rows, (6,), "no peers are configured for this node")
    if not all(peer["established"] for peer in answer["peers"]):
        raise typer.Exit(1)


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no=""))
def routes(
    as_json: AsJson = False,
    node: Node = "",
    namespace: Namespace = "kube-system",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """List the learned routes.

    The best of each prefix, with its next hops, as it is in the kernel.
    """
    if node:
        on_node(node, namespace, ["routes", *_flags(as_json)])
    _print(asked("bgp", agent_socket, "/bgp/routes", {}), as_json, route_rows, (1,), "no routes are learned")


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no=""))
def announced(
    as_json: AsJson = False,
    node: Node = "",
    namespace: Namespace = "kube-system",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """List what is announced, and to whom."""
    if node:
        on_node(node, namespace, ["announced", *_flags(as_json)])
    _print(
        asked("bgp", agent_socket, "/bgp/announced", {}), as_json, announced_rows, (1, 2), "nothing is announced"
    )


@app.command(cls=options.PlainHelp, epilog=_ENDS.format(no="nobody announces it, or "))
def explain(
    prefix: Annotated[str, typer.Argument(metavar="PREFIX", help="A CIDR, or an address inside a learned one.")],
    as_json: AsJson = False,
    node: Node = "",
    namespace: Namespace = "kube-system",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Say why a prefix is routed as it is.

    Shows every path that peers announce, and by which step of the decision it lost.
    """
    if node:
        on_node(node, namespace, ["explain", *_flags(as_json), "--", prefix])
    answer = asked("bgp", agent_socket, "/bgp/explain", {"prefix": prefix})
    with ending_quietly():
        for line in [json.dumps(answer, indent=2)] if as_json else explanation(answer):
            echo(line if as_json else options.printable(line))
    if not answer.get("paths"):
        raise typer.Exit(1)


_ENDS_OF_TRACE = "Exit codes: 0 Ctrl-C, 1 no agent answers any more, 2 wrong option."
app.command(cls=options.PlainHelp, epilog=_ENDS_OF_TRACE)(trace)


def _flags(as_json: bool) -> list[str]:
    return ["--json"] if as_json else []


# --- text --------------------------------------------------------------------------------------------


def peer_rows(answer: Answer) -> Rows:
    """The table of peers."""
    return [
        ("PEER", "AS", "STATE", "SINCE", "IN", "OUT", "WHY"),
        *(
            (
                str(peer["address"]),
                str(peer["asNumber"]),
                "up" if peer["established"] else "down",
                age(peer["sinceSeconds"]),
                str(peer["prefixesReceived"]),
                str(peer["prefixesAnnounced"]),
                str(peer["reason"] or _refused(peer)),
            )
            for peer in answer["peers"]
        ),
    ]


def _refused(peer: Answer) -> str:
    number = peer["prefixesRefused"]
    return f"{number} prefix{'es' if number > 1 else ''} not announced: {peer['refusal']}" if number else ""


def route_rows(answer: Answer) -> Rows:
    """The table of learned routes."""
    found = answer["routes"]
    rows = [(route["prefix"], ", ".join(route["nextHops"]), str(route["priority"] or "")) for route in found]
    if any(priority for *_, priority in rows):
        return [("PREFIX", "NEXT HOPS", "METRIC"), *rows]
    return [("PREFIX", "NEXT HOPS"), *(row[:2] for row in rows)]


def announced_rows(answer: Answer) -> Rows:
    """The table of announcements."""
    return [
        ("PREFIX", "TO", "WITH"),
        *((one["prefix"], ", ".join(one["peers"]), _with(one)) for one in answer["announced"]),
        *((one["prefix"], f"not to {', '.join(one['peers'])}", one["reason"]) for one in answer["refused"]),
    ]


def explanation(answer: Answer) -> list[str]:
    """Each path to a prefix: those in use first, and why the others are not."""
    prefix, paths = answer["prefix"], answer["paths"]
    if not paths:
        return [f"{prefix}: no peer announces it"]
    by = ", ".join(answer["nextHops"])
    lines = [f"{prefix} by {by}" if by else f"{prefix} is not routed"]
    for path in paths:
        why = f": {path['reason']}" if path["reason"] else ""
        peer = f"{path['peer']} path {path['pathIdentifier']}" if path.get("pathIdentifier") else path["peer"]
        lines.append(f"  {path['nextHop']} from {peer}: {'used' if path['used'] else 'not used'}{why}")
        as_path = " ".join(map(str, path["asPath"])) or "empty"
        lines.append(f"    AS path {as_path}, origin {path['origin']}, {_with(path)}")
    return lines


def _with(attributes: Answer) -> str:
    """Attributes beside next hop and AS path, in short."""
    words = []
    if (preference := attributes.get("localPreference")) is not None:
        words.append(f"local preference {preference}")
    if (med := attributes.get("med")) is not None:
        words.append(f"MED {med}")
    if communities := attributes.get("communities"):
        words.append(f"communities {' '.join(communities)}")
    return ", ".join(words)


def age(seconds: float) -> str:
    """A time as kubectl's AGE column has it: 12s, 3m, 5h, 2d."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if seconds >= 2 * unit or (seconds >= unit and unit != _MINUTE):
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds:.0f}s"


# --- asking ------------------------------------------------------------------------------------------


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
