"""felix-py's own processes and pods, as it was installed by its image or by hand."""

from __future__ import annotations

import signal

from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_for
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


def pod_of(cluster: Cluster, node: str) -> str:
    """The name of a node's agent pod, but for one that is being deleted."""
    pods = cluster.get(*PODS, "--field-selector", f"spec.nodeName={node}")["items"]
    return str(next(found["metadata"]["name"] for found in pods if "deletionTimestamp" not in found["metadata"]))
