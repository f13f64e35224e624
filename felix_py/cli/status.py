"""``felix-py status``: whether this node is well, and what to do if not."""

from __future__ import annotations

import json

import typer

from felix_py.cli import options
from felix_py.config import ConfigError


def status(
    output: options.Output = options.OutputFormat.TEXT,
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Say whether this node is well.

    Where it is not, what to do. The node's agent is asked: is policy in force, could everything be written to the
    kernel, who has changed it last, is the API server heard, are the BGP sessions up, which objects are not
    understood. Whether the kernel really holds what it should is the question that `felix-py verify` answers.

    Exit codes: 0 fine, 1 something is to be done, 2 no agent answers, or wrong option.
    """
    from felix_py.diagnose import node_status
    from felix_py.diagnose.agent_says import status as ask

    try:
        answer = ask(agent_socket)
    except ConfigError as error:
        options.fail("status", str(error), 2)
    if answer is None:
        text = f"no agent answers at {agent_socket}; is it running on this node, and of this version?"
        options.fail("status", text, 2)
    found = node_status.read(answer)
    if output is options.OutputFormat.JSON:
        typer.echo(json.dumps(node_status.as_json(found), indent=2))
    else:
        typer.echo(options.printable("\n".join(node_status.text(found))))
    if not found.fine:
        raise typer.Exit(1)
