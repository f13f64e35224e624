"""``--node``: the same command in the pod of that node's agent, by the kubectl of who calls it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from felix_py.cli import options

Node = Annotated[
    str,
    typer.Option(
        "--node", metavar="NAME", help="Ask that node's agent, by kubectl exec.", show_default="this node's"
    ),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Where felix-py's pods are, for --node.")
]

_SELECTOR = "app.kubernetes.io/name=felix-py"
_SECONDS = 30


def on_node(node: str, namespace: str, words: Sequence[str]) -> NoReturn:
    """Become ``felix-py bgp WORDS`` in the agent's pod of a node: output, signals and exit code are its.

    That takes what ``kubectl exec`` does, the right to get pods and to create pods/exec, and nothing of ours: no
    agent listens to the network for it.
    """
    find = ("get", "pods", "-l", _SELECTOR, "--field-selector", f"spec.nodeName={node}", "-o", "name")
    command = ("kubectl", "-n", namespace)
    try:
        found = subprocess.run((*command, *find), check=False, capture_output=True, text=True, timeout=_SECONDS)
        if found.returncode:
            options.fail("bgp", f"kubectl: {options.printable(found.stderr.strip() or 'failed')}", 1)
        pods = found.stdout.split()
        if not pods:
            options.fail("bgp", f"no pod of felix-py is on node {node} in namespace {namespace}", 1)
        argv = [*command, "exec", pods[0], "-c", "agent", "--", "felix-py", "bgp", *words]
        os.execvp("kubectl", argv)
    except FileNotFoundError:
        options.fail("bgp", "--node needs kubectl, which is not here", 1)
    except subprocess.TimeoutExpired:
        options.fail("bgp", f"kubectl has not answered within {_SECONDS} s", 1)
