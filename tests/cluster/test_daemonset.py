"""felix-py as its image and manifests install it, on a cluster of its own: rights that it uses, and its removal.

What docs/install.md and docs/upgrade.md tell to type is typed. Needs ``dist/felix-py.tar`` (``make image``).
The tests stand in the order of an installation's life.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.control_plane import AUDIT_LOG
from tests.cluster.installers import Image, copy_plugins, peers_file
from tests.cluster.machine import CHECKOUT, CommandFailed, wait_for
from tests.cluster.node import Node
from tests.cluster.plan import Shape
from tests.cluster.typed import MANIFESTS, check_out, type_in
from tests.cluster.workloads import Namespace, deployment, targets
from tests.support.pages import commands
from tests.support.rbac_audit import Right, compare, granted, service_account

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

ARCHIVE = CHECKOUT / "dist" / "felix-py.tar"
SHAPE = Shape(2, (4,), "nft", audit=True)
SYSTEM = ("-n", "kube-system")
FOLDERS = "/opt/cni/bin /etc/cni/net.d /run/felix-py /var/lib/felix-py"

RARELY = {
    # An Event's count is raised ten minutes after its last one.
    Right("", "events", "", "patch"),
    # Where there is an IPPool for load balancers.
    Right("", "services/status", "", "patch"),
    # Asked where these kinds are not served: by hand, without their definitions.
    *(
        Right("apiextensions.k8s.io", "customresourcedefinitions", f"{kind}.felixpy.io", verb)
        for kind in (
            *("felixconfigurations", "bgpconfigurations", "bgppeers", "bgpfilters"),
            *("ippools", "ipreservations", "ipamblocks", "blockaffinities"),
        )
        for verb in ("list", "watch")
    ),
    # A list is asked for where the server has no WatchList; this one has.
    *(
        Right("felixpy.io", kind, "", "list")
        for kind in ("bgpconfigurations", "bgppeers", "bgpfilters", "ippools", "ipreservations")
    ),
    # Where there is an IPPool.
    *(
        Right("felixpy.io", kind, "", verb)
        for kind in ("ipamblocks", "blockaffinities")
        for verb in ("list", "watch", "create", "patch", "delete")
    ),
    # Once a BGPConfiguration asks for announcements of Services, on nodes without a peers file.
    *(
        Right(group, kind, "", verb)
        for group, kind in (("", "services"), ("discovery.k8s.io", "endpointslices"))
        for verb in ("list", "watch")
    ),
}

UNUSABLE: list[dict[str, Any]] = [
    {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "unusable"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {"matchLabels": {"nobody": "has-it"}}},
            "egress": [{"action": "Accept", "to": [{"domainNames": ["a.example"]}]}],
        },
    },
    {
        "apiVersion": "policy.networking.k8s.io/v1alpha1",
        "kind": "AdminNetworkPolicy",
        "metadata": {"name": "unusable"},
        "spec": {
            "priority": 5,
            "subject": {"namespaces": {"matchLabels": {"nobody": "has-it"}}},
            "egress": [{"action": "Allow", "to": [{"domainNames": ["a.example"]}]}],
        },
    },
    {
        "apiVersion": "policy.networking.k8s.io/v1alpha1",
        "kind": "BaselineAdminNetworkPolicy",
        "metadata": {"name": "default"},
        "spec": {
            "subject": {"namespaces": {"matchExpressions": [{"key": "x", "operator": "In", "values": []}]}},
            "egress": [{"action": "Deny", "to": [{"namespaces": {"matchLabels": {"nobody": "has-it"}}}]}],
        },
    },
]
"""What the definitions let in and no agent can apply as written: so Events and conditions are written."""


class AsDocumented(Image):
    """The image, and what docs/install.md says; it looks at the nodes before."""

    def install(self, cluster: Cluster) -> None:
        """Look, then install."""
        for node in cluster.nodes:
            copy_plugins(node, "portmap", "loopback")
        self.before = {node.name: traces(node) for node in cluster.nodes}
        cluster.each_node(lambda node: node.import_images(ARCHIVE))
        check_out(cluster, peers_file(cluster))
        type_in(cluster, commands("install.md", "cluster$", "2. Your routers")[0])
        for command in commands("install.md", "cluster$", "3. felix-py"):
            type_in(cluster, command)


def traces(node: Node) -> dict[str, object]:
    """What a network may leave on a node: files, IP sets, links, routes, and rules but for kube-proxy's."""
    rules = "".join(node.machine.run(f"{tool}-save") for tool in ("iptables", "ip6tables"))
    ours = [line for line in rules.splitlines() if line.startswith(("-A", ":")) and "KUBE-" not in line]
    built_in = re.compile(r":[A-Z]+ ACCEPT \[\d+:\d+\]")
    return {
        "files": node.machine.run("sh", "-c", f"find {FOLDERS} 2>/dev/null | sort").splitlines(),
        "sets": node.machine.run("ipset", "list", "-n").split(),
        "links": re.findall(r"^\d+: ([^:@]+)", node.machine.run("ip", "-o", "link"), re.MULTILINE),
        "routes": node.machine.run("ip", "route").splitlines(),
        "rules": [line for line in ours if not built_in.fullmatch(line)],
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not ARCHIVE.exists():
        pytest.skip("no dist/felix-py.tar: make image")
    folder = tmp_path_factory.mktemp("daemonset")
    cluster = Cluster(f"d{folder.stat().st_ino}", folder / "cluster", SHAPE, AsDocumented())
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="module")
def pods(installed: Cluster) -> Namespace:
    """Two pods on each node."""
    namespace = Namespace(installed)
    namespace.apply(deployment("web", 4))
    namespace.kubectl("rollout", "status", "deployment/web", "--timeout=180s", timeout=190)
    return namespace


def system_pods(cluster: Cluster, name: str) -> list[str]:
    found = cluster.get("pods", *SYSTEM, "-l", f"app.kubernetes.io/name={name}")["items"]
    return [one["metadata"]["name"] for one in found]


def reach_each_other(pods: Namespace) -> bool:
    everybody = {target for pod in pods.pods() for target in targets(pods.addresses(pod))}
    return all(pods.reaches(pod, everybody) == everybody for pod in pods.pods())


def test_nodes_are_well(installed: Cluster, pods: Namespace) -> None:
    assert reach_each_other(pods)
    agents = system_pods(installed, "felix-py")
    assert len(agents) == SHAPE.nodes
    for pod in agents:
        in_agent = (*SYSTEM, "exec", pod, "-c", "agent", "--")
        said = installed.kubectl(*in_agent, "felix-py", "status")
        assert "1 of 1 peer established" in said
        assert "the kernel holds what it should" in installed.kubectl(*in_agent, "felix-py", "verify")


def test_rights_are_what_is_used(installed: Cluster) -> None:
    for definition in ("clusternetworkpolicies", "adminnetworkpolicies", "baselineadminnetworkpolicies"):
        installed.kubectl("wait", "--for=condition=Established", f"crd/{definition}.policy.networking.k8s.io")
    installed.apply(*UNUSABLE)
    names = [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in UNUSABLE]
    for name in names:
        wait_for(f"the condition of {name}", lambda name=name: has_condition(installed, name), 60)  # type: ignore[misc]
    for name in names:
        installed.kubectl("delete", name)
    role = installed.get("clusterrole", "felix-py")
    log = installed.machines["cp"].path(AUDIT_LOG)
    found = compare(granted(role), lines(log), service_account("kube-system", "felix-py"), RARELY)
    assert found.asked > 20
    assert (found.unused, found.refused) == (set(), set())


def has_condition(cluster: Cluster, name: str) -> bool:
    conditions = cluster.get(name).get("status", {}).get("conditions", [])
    return any(one["type"] == "felixpy.io/Accepted" for one in conditions)


def lines(log: Path) -> list[str]:
    """Whole lines: the last one may be under way."""
    return log.read_text().rpartition("\n")[0].splitlines()


def test_agents_wait_for_nobody_and_nobody_for_them(installed: Cluster) -> None:
    """API priority and fairness: all requests of agents are dispatched in a level of their own."""
    metrics = installed.kubectl("get", "--raw", "/metrics")
    dispatched = re.findall(
        r'^apiserver_flowcontrol_dispatched_requests_total\{flow_schema="(.*?)",priority_level="(.*?)"\} (\S+)$',
        metrics,
        re.MULTILINE,
    )
    counts = {(schema, level): float(count) for schema, level, count in dispatched}
    assert counts["felix-py", "felix-py"] > 20
    assert not re.search(r"^apiserver_flowcontrol_rejected_requests_total.*felix-py", metrics, re.MULTILINE)


def test_first_policy_and_first_peer_of_the_page(installed: Cluster) -> None:
    for command in commands("install.md", "cluster$", "First policy"):
        if "felix-py explain" not in command:
            type_in(installed, command)
            continue
        # The examples' images cannot be had in here, so their pods have no addresses, and the command says that.
        with pytest.raises(CommandFailed, match="shop/"):
            type_in(installed, command)
    for command in commands("install.md", "cluster$", "First peer"):
        assert "1 of 1 peer established" in type_in(installed, command)
    assert "10.244." in installed.node("node1").machine.run("ip", "route", "show", "proto", "89")
    installed.kubectl("delete", "-f", str(MANIFESTS / "examples" / "00-pods.yaml"), timeout=120)


def test_settings_change_and_one_node_first(installed: Cluster, pods: Namespace) -> None:
    """The ConfigMap written anew, and docs/upgrade.md: all agents are new then, pods have kept their network."""
    server = installed.shape.addresses("cp")[0]
    installed.kubectl(*SYSTEM, "delete", "configmap", "felix-py")
    (anew,) = commands("install.md", "cluster$", "If kube-proxy cannot come first")
    type_in(installed, anew.replace("10.0.0.10", server))
    for command in commands("install.md", "cluster$", "2. Your routers")[1:]:
        type_in(installed, command)
    installed.kubectl(*SYSTEM, "rollout", "status", "daemonset/felix-py", "--timeout=180s", timeout=190)
    for pod in system_pods(installed, "felix-py"):
        in_agent = (*SYSTEM, "exec", pod, "-c", "agent", "--")
        asked = "import os; print(os.environ['KUBERNETES_SERVICE_HOST'])"
        assert installed.kubectl(*in_agent, "python3", "-c", asked).strip() == server
    before = set(system_pods(installed, "felix-py"))
    patch, _, delete = commands("upgrade.md", "cluster$", "One node first")
    type_in(installed, patch)
    type_in(installed, delete.replace("NODE", "node1"))
    wait_for("the node's new agent", lambda: len(new(installed, before)) == 1 and rolled_out(installed), 120)
    assert len(before & set(system_pods(installed, "felix-py"))) == SHAPE.nodes - 1
    installed.kubectl("apply", "-f", str(MANIFESTS / "felix-py.yaml"))
    assert installed.get("daemonset", "felix-py", *SYSTEM)["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    assert reach_each_other(pods)


def new(cluster: Cluster, before: set[str]) -> set[str]:
    return set(system_pods(cluster, "felix-py")) - before


def rolled_out(cluster: Cluster) -> bool:
    status = cluster.get("daemonset", "felix-py", *SYSTEM)["status"]
    return bool(status.get("numberReady") == SHAPE.nodes)


def test_cleanup_waits_for_the_daemonsets_end(installed: Cluster, pods: Namespace) -> None:
    before = {node.name: traces(node) for node in installed.nodes}
    installed.kubectl("apply", "-f", str(MANIFESTS / "cleanup.yaml"))
    wait_for("what it says", lambda: all_refuse(installed), 60)
    assert {node.name: traces(node) for node in installed.nodes} == before
    assert reach_each_other(pods)


def all_refuse(cluster: Cluster) -> bool:
    found = system_pods(cluster, "felix-py-cleanup")
    try:
        said = [cluster.kubectl(*SYSTEM, "logs", pod, "-c", "cleanup") for pod in found]
    except CommandFailed:  # not started yet
        return False
    return len(said) == SHAPE.nodes and all("felix-py is still there" in text for text in said)


def test_removal_leaves_nodes_as_they_were(installed: Cluster, pods: Namespace) -> None:
    pods.delete(wait=True)
    delete, _, clean, *rest = commands("install.md", "cluster$", "Removal")
    type_in(installed, delete)
    type_in(installed, clean)
    assert isinstance(installed.installer, AsDocumented)
    assert {node.name: traces(node) for node in installed.nodes} == installed.installer.before
    for command in rest:
        type_in(installed, command)
    wait_for("the end of the last pod", lambda: not system_pods(installed, "felix-py-cleanup"), 60)
