"""The API server gets another authority, in the steps of Kubernetes' "Manual Rotation of CA Certificates"."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.cluster import agents
from tests.cluster.cluster import Cluster
from tests.cluster.installers import Image, Installer
from tests.cluster.machine import wait_for
from tests.cluster.node import Node
from tests.cluster.places import Mesh
from tests.cluster.plan import Shape
from tests.cluster.test_api_server_away import catches_up, until_listed
from tests.cluster.workloads import Namespace

pytestmark = [pytest.mark.root, pytest.mark.heavy, pytest.mark.timeout(900)]

_MOUNTED = "cat /var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/api-access/ca.crt"


def test_authority_is_rotated(
    start_cluster: Callable[[Shape, Installer], AbstractContextManager[Cluster]],
) -> None:
    """First all trust both, then the server has a certificate of the new one: agents go on without a restart."""
    with start_cluster(Shape(nodes=2), Image()) as cluster:
        mesh = Mesh(namespace := Namespace(cluster))
        before = restarts(cluster)
        with mesh.traffic() as traffic:
            cluster.pki.trust_another()
            cluster.control_plane.write_kubeconfigs()
            for service in ("kube-controller-manager", "kube-scheduler"):
                cluster.control_plane.machine.signal_service(service, signal.SIGKILL)
            for node in cluster.nodes:
                node.write_kubeconfigs()
                for service in ("kubelet", "kube-proxy"):
                    node.machine.signal_service(service, signal.SIGKILL)
            both = (cluster.pki.folder / "root-ca.crt").read_text().strip()
            for node in cluster.nodes:
                wait_for("both authorities at the agent", lambda: both in mounted(node), 240)  # noqa: B023
            cluster.pki.certify_apiserver("ca2")
            cluster.control_plane.machine.signal_service("kube-apiserver", signal.SIGKILL)
            until_listed(cluster)
            cluster.wait_ready()
            rotated = traffic.seconds
        traffic.stop()
        print(f"\n[{cluster.shape}: another authority after {rotated:.0f} s: {traffic.report()}]")
        assert all(stream.well for stream in traffic.streams), traffic.report()
        catches_up(cluster, namespace)
        assert restarts(cluster) == before


def mounted(node: Node) -> str:
    """The authorities that the agent trusts: the file of its volume."""
    return node.machine.run("sh", "-c", _MOUNTED)


def restarts(cluster: Cluster) -> dict[str, int]:
    """How often the containers of each agent's pod were restarted."""
    pods = cluster.get(*agents.PODS)["items"]
    return {
        pod["metadata"]["name"]: sum(one["restartCount"] for one in pod["status"]["containerStatuses"])
        for pod in pods
    }
