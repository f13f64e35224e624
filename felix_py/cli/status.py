"""``felix-py status``: whether this node, or the whole cluster, is well, and what to do if not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from felix_py.cli import options
from felix_py.config import ConfigError


def status(
    every: Annotated[
        bool, typer.Option("--all", help="All nodes of the cluster, as the API server knows them.")
    ] = False,
    output: options.Output = options.OutputFormat.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as -o json.")] = False,
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
    kubeconfig: options.Kubeconfig = None,
    context: options.Context = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Where felix-py's pods are, for --all.")
    ] = "kube-system",
) -> None:
    """Say whether this node is well.

    Where it is not, what to do. The node's agent is asked: is policy in force, could everything be written to the
    kernel, who has changed it last, is the API server heard, are the BGP sessions up, which objects are not
    understood. Whether the kernel really holds what it should is the question that `felix-py verify` answers.

    --all needs no agent but access to the cluster, as kubectl has it: a line a node, by its Node, its
    NodeNetworkStatus and felix-py's pod on it.

    Exit codes: 0 fine, 1 something is to be done, 2 no agent or API server answers, or wrong option.
    """
    form = options.OutputFormat.JSON if as_json else output
    fine = _of_cluster(kubeconfig, context, namespace, form) if every else _of_node(agent_socket, form)
    if not fine:
        raise typer.Exit(1)


def _of_node(agent_socket: str, form: options.OutputFormat) -> bool:
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
    _print(form, node_status.as_json(found), node_status.text(found))
    return found.fine


def _of_cluster(kubeconfig: Path | None, context: str | None, namespace: str, form: options.OutputFormat) -> bool:
    from felix_py.datastore.client import ApiError, Unreachable
    from felix_py.diagnose import cluster_read, cluster_status

    try:
        api = options.connect_api(kubeconfig, context)
        with options.patience(f"asking {api.server} …"):
            seen = cluster_read.read(api, namespace)
    except (ConfigError, ApiError, Unreachable) as error:
        options.fail("status", options.printable(str(error)), 2)
    found = cluster_status.read(seen)
    _print(form, cluster_status.as_json(found), cluster_status.text(found))
    return found.fine


def _print(form: options.OutputFormat, objects: object, lines: list[str]) -> None:
    if form is options.OutputFormat.JSON:
        typer.echo(json.dumps(objects, indent=2))
    else:
        typer.echo(options.printable("\n".join(lines)))
