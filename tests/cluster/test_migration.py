"""From a network that routes pods' addresses by host gateway to felix-py, node by node, by docs/migration.md.

The old network is the reference plugins with static routes: what flannel's ``host-gw`` makes, without an agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.installers import Baseline, peers_file
from tests.cluster.machine import CHECKOUT, wait_for
from tests.cluster.node import Node
from tests.cluster.plan import Shape
from tests.cluster.typed import MANIFESTS, check_out, type_in
from tests.cluster.workloads import Namespace, pod, policy, targets
from tests.support.pages import DOCS, commands

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

ARCHIVE = CHECKOUT / "dist" / "felix-py.tar"
SHAPE = Shape(2, (4,), "nft")
SYSTEM = ("-n", "kube-system")


class KeptOff(Baseline):
    """Whoever makes the old network's routes does so no more on a node that has moved."""

    def boot(self, cluster: Cluster, node: Node) -> None:
        """Nothing: only nodes that have moved are booted here."""


@pytest.fixture
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not ARCHIVE.exists():
        pytest.skip("no dist/felix-py.tar: make image")
    folder = tmp_path_factory.mktemp("migration")
    name = f"m{folder.stat().st_ino}"
    cluster = Cluster(name, folder / "cluster", SHAPE, KeptOff(), binds=[ARCHIVE.parent, MANIFESTS])
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def kustomization() -> str:
    """The page's, over the base: the peers are in a ConfigMap that is there already."""
    found = re.search(r"# network/kustomization\.yaml\n((?:    .*\n)+)", (DOCS / "migration.md").read_text())
    assert found
    text = re.sub(r"^    ", "", found[1], flags=re.MULTILINE)
    assert "../felix-py/manifests/overlays/tor" in text
    return text.replace("../felix-py/manifests/overlays/tor", "../manifests/base")


def prepare(cluster: Cluster) -> None:
    """All that the page says is done before the first node moves."""
    cluster.each_node(lambda node: node.import_images(ARCHIVE))
    check_out(cluster, peers_file(cluster))
    type_in(cluster, commands("install.md", "cluster$", "2. Your routers")[0])
    cluster.machines["cp"].write("/root/network/kustomization.yaml", kustomization())
    type_in(cluster, "kubectl apply -k network")
    wait_for("the DaemonSet", lambda: "numberReady" in daemonset(cluster), 60)
    assert daemonset(cluster)["desiredNumberScheduled"] == 0


def daemonset(cluster: Cluster) -> dict[str, int]:
    found: dict[str, int] = cluster.get("daemonset", "felix-py", *SYSTEM)["status"]
    return found


def move(cluster: Cluster, name: str, ready: int) -> None:
    """One node, by the page's commands."""
    drain, label, *_, uncordon = (
        command
        for command in commands("migration.md", "cluster$")
        if command.startswith("kubectl ") and "NODE" in command
    )
    type_in(cluster, drain.replace("NODE", name) + " --force")  # pods of tests have no owner
    type_in(cluster, label.replace("NODE", name))
    node = cluster.node(name)
    (away,) = (command for command in commands("migration.md", "node#") if command.startswith("mv "))
    node.machine.run("sh", "-c", away.replace("10-calico", "10-baseline"))
    cluster.reboot(node)
    wait_for(f"felix-py on {name}", lambda: daemonset(cluster).get("numberReady") == ready, 120)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{name}", "--timeout=60s", timeout=70)
    type_in(cluster, uncordon.replace("NODE", name))


def everybody_reaches(namespace: Namespace, *pods: str) -> bool:
    all_of_them = {target for one in pods for target in targets(namespace.addresses(one))}
    return all(namespace.reaches(one, all_of_them) == all_of_them for one in pods)


@pytest.mark.heavy
def test_node_by_node(old: Cluster) -> None:
    namespace = Namespace(old)
    namespace.apply(pod("old1", nodeName="node1"), pod("old2", nodeName="node2"))
    namespace.wait_ready("old1", "old2")
    assert everybody_reaches(namespace, "old1", "old2")
    prepare(old)
    assert everybody_reaches(namespace, "old1", "old2"), "nothing has happened yet"

    move(old, "node1", ready=1)
    namespace.apply(pod("new1", {"app": "new1"}, nodeName="node1"))
    namespace.wait_ready("new1")
    assert everybody_reaches(namespace, "new1", "old2"), "one network on each node"
    closed = policy("closed", podSelector={"matchLabels": {"app": "new1"}}, policyTypes=["Ingress"])
    namespace.apply(closed)
    wait_for("the policy", lambda: not namespace.reaches("old2", targets(namespace.addresses("new1"))), 30)
    namespace.kubectl("delete", "networkpolicy", "closed")

    move(old, "node2", ready=2)
    namespace.apply(pod("new2", nodeName="node2"))
    namespace.wait_ready("new2")
    wait_for("both ways", lambda: everybody_reaches(namespace, "new1", "new2"), 60)
    for agent in old.get("pods", *SYSTEM, "-l", "app.kubernetes.io/name=felix-py")["items"]:
        in_agent = (*SYSTEM, "exec", agent["metadata"]["name"], "-c", "agent", "--")
        assert "1 of 1 peer established" in old.kubectl(*in_agent, "felix-py", "status")
