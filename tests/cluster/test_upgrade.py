"""Rolling updates of the DaemonSet: packets, policy and starts of pods do not notice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster import agents, previous
from tests.cluster.cluster import Cluster
from tests.cluster.installers import ARCHIVE
from tests.cluster.places import Mesh
from tests.cluster.starting import Starts
from tests.cluster.workloads import Namespace

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

LONGEST_START = 60
"""Seconds: kubelet tries again by itself some ten seconds after a start that failed."""


def roll(cluster: Cluster, image: str) -> None:
    """Have all containers of the DaemonSet run an image, one node after the other."""
    cluster.kubectl(*agents.NAMESPACE, "set", "image", "daemonset/felix-py", f"*={image}")
    cluster.kubectl(*agents.NAMESPACE, "rollout", "status", "daemonset/felix-py", "--timeout=300s", timeout=310)


def images(cluster: Cluster) -> set[str]:
    """Which images the agents' pods run."""
    pods = cluster.get(*agents.PODS)["items"]
    return {status["imageID"] for pod in pods for status in pod["status"]["containerStatuses"]}


def bring(cluster: Cluster, archive: Path) -> None:
    """Import an archive that the machines do not show."""

    def load(machine_name: str) -> None:
        with archive.open("rb") as file:
            argv = [*cluster.machines[machine_name].enter(), "ctr", "-n", "k8s.io", "images", "import", "-"]
            subprocess.run(argv, stdin=file, stdout=subprocess.DEVNULL, check=True, timeout=300)

    cluster.each_node(lambda node: load(node.name))


def test_downgrade_and_upgrade_lose_no_packet(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    """To the previous commit's image and back, while streams of all kinds flow and pods start."""
    archive, what = previous.archive(ARCHIVE, tmp_path)
    bring(cluster, archive)
    current = cluster.get(*agents.NAMESPACE, "daemonset", "felix-py")["spec"]["template"]["spec"]["containers"][
        0
    ]["image"]
    before = images(cluster)
    mesh = Mesh(namespace)
    with mesh.traffic() as traffic, Starts(namespace) as starts:
        roll(cluster, previous.NAME)
        assert not images(cluster) & before, "another image runs"
        there = traffic.seconds
        roll(cluster, current)
        assert images(cluster) == before
    traffic.stop()
    print(f"\n[{cluster.shape}: to {what} in {there:.0f} s, and back: {traffic.report()}]")
    seconds = starts.seconds()
    print(f"[{len(seconds)} pods started meanwhile, Ready after {max(seconds):.0f} s at most]")
    assert all(stream.well for stream in traffic.streams), traffic.report()
    assert max(seconds) < LONGEST_START
