"""``felix-py bgp trace``: what happens in a node's BGP, as it happens."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from felix_py.cli import options
from felix_py.cli.asking import as_object, ask, echo, ending_quietly, failing
from felix_py.cli.elsewhere import Namespace, Node, on_node

_SILENCE_SECONDS = 45.0
"""The agent sends an empty line at least every 15 seconds."""


def trace(
    about: Annotated[
        str, typer.Argument(metavar="[PEER|PREFIX]", help="A peer's address, an address in a prefix, or a CIDR.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    node: Node = "",
    namespace: Namespace = "kube-system",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Show what happens, as it happens.

    Sessions, what peers announce and withdraw, each change of a best route, and what this node announces. With an
    address: that peer, and the prefixes that cover it; with a CIDR: that prefix and those inside it. A reader who
    is too slow loses events, and is told how many.
    """
    if node:
        on_node(node, namespace, ["trace", *(["--json"] if as_json else []), *(["--", about] if about else [])])
    answering = ask(agent_socket, "/bgp/trace", {"about": about}, _SILENCE_SECONDS)
    with failing("bgp", agent_socket), ending_quietly(), answering as response:
        while line := response.readline():
            if line.strip():
                event = as_object(line)
                echo(json.dumps(event) if as_json else options.printable(text(event)))
    options.fail("bgp", "the agent has ended", 1)


def text(event: dict[str, Any]) -> str:
    """A line for people."""
    at = str(event.get("time", "")).partition("T")[2].rstrip("Z")
    if event.get("kind") == "lost":
        return f"{at} lost     {event.get('count')} events found no room"
    about = " ".join(filter(None, (str(event.get("peer", "")), str(event.get("prefix", "")))))
    return f"{at} {event.get('kind', ''):8} {about}  {event.get('detail', '')}".rstrip()
