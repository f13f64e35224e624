"""felix-py by its Helm chart, as install.md and upgrade.md tell: install, upgrade, and what Helm leaves.

The first chart is an earlier one: it has another image, and its definition of FelixConfiguration lacks a field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

from felix_py.layout import CHAIN_PREFIX
from tests.cluster import agents, assets
from tests.cluster.cluster import Cluster
from tests.cluster.installers import ARCHIVE, Image, Installer, copy_plugins, peers_file
from tests.cluster.machine import CommandFailed, wait_for
from tests.cluster.places import Mesh
from tests.cluster.plan import Shape
from tests.cluster.typed import CHECKED_OUT, MANIFESTS, check_out, type_in
from tests.cluster.workloads import Namespace
from tests.support.manifests import CHART, IMAGE
from tests.support.pages import commands

pytestmark = [pytest.mark.root, pytest.mark.heavy, pytest.mark.timeout(900)]

EARLIER = "earlier"
"""The folder of the earlier chart, and the tag of its image."""

ADDED = "natOutgoing"
CONFIGURATION = {
    "apiVersion": "felixpy.io/v1alpha1",
    "kind": "FelixConfiguration",
    "metadata": {"name": "default"},
    "spec": {ADDED: False},
}


class Chart(Image):
    """The earlier chart with the peers that the cluster has."""

    def __init__(self) -> None:
        super().__init__()
        self.binds = [ARCHIVE.parent, MANIFESTS, assets.folder(assets.HELM)]

    def prepare(self, cluster: Cluster) -> None:
        """The image under both names; there is no ConfigMap, since the chart makes it."""
        for node in cluster.nodes:
            copy_plugins(node, "portmap", "loopback")
            node.import_images(ARCHIVE)
            name = next(word for word in node.machine.run(*_CTR, "ls", "-q").split() if word.startswith(IMAGE))
            node.machine.run(*_CTR, "tag", name, f"{IMAGE}:{EARLIER}")
        check_out(cluster, "")
        for file in filter(Path.is_file, CHART.rglob("*")):
            place = f"{CHECKED_OUT}/{EARLIER}/{file.relative_to(CHART)}"
            cluster.machines["cp"].write(place, _earlier(file))

    def apply(self, cluster: Cluster) -> None:
        """``helm install``, by the page's first command for it."""
        install = next(line for line in commands("install.md", "cluster$", "Variants") if "helm install" in line)
        words = install.split(" --set-json ")[0].replace(str(_CHART), EARLIER)
        peers = json.dumps({"bgp": json.loads(peers_file(cluster))})
        cluster.machines["cp"].write(f"{CHECKED_OUT}/values.json", peers)
        type_in(cluster, f"{words} --values values.json --set image.tag={EARLIER}")
        _rolled_out(cluster)


_CHART = CHART.relative_to(MANIFESTS.parent)
_CTR = ("ctr", "-n", "k8s.io", "images")


def _earlier(file: Path) -> str:
    text = file.read_text()
    if file.name == "Chart.yaml":
        return text.replace("\nversion: ", "\nversion: 0.0.1-before.")
    if file.name == "felixpy.io_felixconfigurations.yaml":
        definition = yaml.safe_load(text)
        (version,) = definition["spec"]["versions"]
        del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][ADDED]
        return str(yaml.safe_dump(definition))
    return text


def _rolled_out(cluster: Cluster) -> None:
    rollout = ["rollout", "status", "daemonset/felix-py", "--timeout=300s"]
    cluster.kubectl(*agents.NAMESPACE, *rollout, timeout=310)


@pytest.fixture(scope="module")
def charted(start_cluster: Callable[[Shape, Installer], AbstractContextManager[Cluster]]) -> Iterator[Cluster]:
    if not ARCHIVE.exists():
        pytest.skip("no dist/felix-py.tar: make image")
    with start_cluster(Shape(nodes=2), Chart()) as cluster:
        yield cluster


def tags(cluster: Cluster) -> set[str]:
    """Which tags of the image the agents' pods run."""
    pods = cluster.get(*agents.PODS)["items"]
    return {one["image"].rpartition(":")[2] for pod in pods for one in pod["spec"]["containers"]}


def release(cluster: Cluster) -> tuple[str, str]:
    """The revision and the chart that Helm says are installed."""
    (found,) = json.loads(type_in(cluster, "helm list -n kube-system -o json"))
    assert found["status"] == "deployed"
    return found["revision"], found["chart"]


def test_a_chart_is_installed_upgraded_and_taken_away(charted: Cluster) -> None:
    """No packet is lost by the upgrade, and a field that the new definition has counts."""
    revision, before = release(charted)
    assert (revision, tags(charted)) == ("1", {EARLIER})
    with pytest.raises(CommandFailed, match=f"unknown field .*{ADDED}"):
        charted.apply(CONFIGURATION)

    namespace = Namespace(charted)
    mesh = Mesh(namespace)
    with mesh.traffic() as traffic:
        for command in commands("upgrade.md", "cluster$", "Helm"):
            type_in(charted, command.replace("image.tag=NEW", "image.tag="))
        _rolled_out(charted)
    traffic.stop()
    print(f"\n[{charted.shape}: helm upgrade from {before}: {traffic.report()}]")
    assert all(stream.well for stream in traffic.streams), traffic.report()
    revision, now = release(charted)
    assert revision == "2"
    assert now != before
    assert EARLIER not in tags(charted)

    charted.apply(CONFIGURATION)
    for node in charted.nodes:
        status = ["nodenetworkstatus", node.name]
        wait_for(
            f"{ADDED} at {node.name}",
            lambda status=status: charted.get(*status)["status"].get("restartRequired") == [ADDED],  # type: ignore[misc]
            60,
        )
    charted.kubectl("delete", "felixconfiguration", "default")
    namespace.delete(wait=True)

    # As `kubectl delete -f` does it: what enforces policy stays, and so do the definitions and what is of them.
    type_in(charted, "helm uninstall felix-py -n kube-system --wait")
    wait_for("an end of all agents", lambda: not charted.get(*agents.PODS)["items"], 60)
    assert f":{CHAIN_PREFIX}" in charted.nodes[0].machine.run("iptables-save")
    assert charted.get("crd", "felixconfigurations.felixpy.io")
    assert not charted.get("configmaps", *agents.NAMESPACE, "-l", "app.kubernetes.io/name=felix-py")["items"]
