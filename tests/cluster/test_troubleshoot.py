"""Each command of docs/troubleshoot.md, typed on a cluster that works: it ends well, or as the page says."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.machine import CommandFailed, wait_for
from tests.cluster.typed import type_in
from tests.cluster.workloads import Namespace
from tests.support.manifests import ROOT
from tests.support.pages import commands, quoted

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

PAGE = "troubleshoot.md"
SYSTEM = ("-n", "kube-system")
NODE = "node1"
CLEANUP = (ROOT / "manifests" / "cleanup.yaml").read_text()


def told() -> list[str]:
    return list(dict.fromkeys([*commands(PAGE, "cluster$"), *quoted(PAGE, "kubectl")]))


@pytest.fixture
def helpless(cluster: Cluster) -> Iterator[str]:
    """A pod of the cleanup that waits for the DaemonSet's end, as in the page's last line."""
    cluster.kubectl("apply", "-f", "-", stdin=CLEANUP)
    try:
        yield wait_for("a pod that waits", lambda: waiting(cluster), 60)
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=CLEANUP, timeout=120)


def waiting(cluster: Cluster) -> str:
    selector = ["-l", "app.kubernetes.io/name=felix-py-cleanup", "--field-selector", f"spec.nodeName={NODE}"]
    (found,) = cluster.get(*SYSTEM, "pods", *selector)["items"]
    name = str(found["metadata"]["name"])
    cluster.kubectl(*SYSTEM, "logs", name, "-c", "cleanup")
    return name


def kill_agent(cluster: Cluster) -> None:
    """So that there is a log of before; returns when the agent's next life is ready."""
    before, _ = life(cluster)
    agents.send(cluster.node(NODE), signal.SIGKILL)
    wait_for("the agent's next life", lambda: life(cluster) >= (before + 1, True), 120)


def life(cluster: Cluster) -> tuple[int, bool]:
    """How often the agent has been started again, and whether it is ready."""
    pod = cluster.get(*SYSTEM, "pod", agents.pod_of(cluster, NODE))
    agent = next(one for one in pod["status"]["containerStatuses"] if one["name"] == "agent")
    return agent["restartCount"], agent["ready"]


def test_commands(cluster: Cluster, web: Namespace, helpless: str) -> None:
    kill_agent(cluster)
    here, there, *_ = web.pods()
    failed = {}
    for command in told():
        found = command.replace("NAMESPACE/SRC", f"{web.name}/{here}").replace(
            "NAMESPACE/DST", f"{web.name}/{there}"
        )
        if "-c cleanup" in found:
            pod = helpless
        elif "-n kube-system" in found:
            pod = agents.pod_of(cluster, NODE)
        else:
            pod = here
            found = re.sub(r"^kubectl (?=.*\bPOD\b)", f"kubectl -n {web.name} ", found)
        found = re.sub(r"\bPOD\b", pod, re.sub(r"\bNODE\b", NODE, found))
        try:
            type_in(cluster, found)
        except CommandFailed as error:
            failed[command] = str(error)
        if "rollout restart" in found:
            cluster.kubectl(*SYSTEM, "rollout", "status", "daemonset/felix-py", "--timeout=180s", timeout=190)
            kill_agent(cluster)
    assert not failed, failed
