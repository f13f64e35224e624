"""felix-py's own processes and pods, as it was installed by its image or by hand."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.cluster.machine import wait_for

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.node import Node

NAMESPACE = ["-n", "kube-system"]
PODS = [*NAMESPACE, "pods", "-l", "app.kubernetes.io/name=felix-py"]


def send(node: Node, number: signal.Signals) -> None:
    """Send a node's agent a signal; one that is about to start is waited for.

    Raises:
        CommandFailed: there was none in a minute.
    """
    # What keeps a service has the same words in its command line.
    program = ["pkill", f"-{number.value}", "-f", "^[^ ]*python.* [^ ]*felix-py agent"]
    wait_for(f"{node.name}'s agent", lambda: node.machine.run(*program) == "", 60)


def wait_ready(node: Node) -> None:
    """Wait until a node's agent says that it is ready.

    Raises:
        CommandFailed: it is not in two minutes.
    """
    ready = ["curl", "-sf", "--max-time", "5", "http://127.0.0.1:9099/readyz"]
    wait_for(f"{node.name}: the agent", lambda: node.machine.run(*ready), 120)


def pod_of(cluster: Cluster, node: str) -> str:
    """The name of a node's agent pod, but for one that is being deleted."""
    pods = cluster.get(*PODS, "--field-selector", f"spec.nodeName={node}")["items"]
    return str(next(found["metadata"]["name"] for found in pods if "deletionTimestamp" not in found["metadata"]))
