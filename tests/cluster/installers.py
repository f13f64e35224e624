"""Ways to put a network on a cluster: felix-py by hand or as an image, and the reference plugins for comparison.

An installer is all that a cluster knows of its network.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster import agents
from tests.cluster.machine import CHECKOUT, wait_for
from tests.cluster.plan import NODE_ASN, TOR, TOR_ASN, address

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster
    from tests.cluster.node import Node


ARCHIVE = CHECKOUT / "dist" / "felix-py.tar"
"""What ``make image`` leaves."""


class Installer:
    """Does nothing, for what is installed later. ``binds`` are folders that all machines must show.

    ``makes_ready``: nodes are Ready once it has installed.
    """

    binds: Sequence[Path] = ()
    makes_ready = False

    def install(self, cluster: Cluster) -> None:
        """Put the network on all nodes; whether nodes become Ready is for the cluster to see."""

    def boot(self, cluster: Cluster, node: Node) -> None:
        """Start on a node that has been booted again what its init system would start."""

    def uninstall(self, cluster: Cluster) -> None:
        """Take it off all nodes, as the documents say."""


class Baseline(Installer):
    """ptp, host-local and portmap, with static routes between nodes: no policy, no BGP."""

    makes_ready = True

    def install(self, cluster: Cluster) -> None:
        """Each node's list of plugins, and everybody's routes."""
        for node in cluster.nodes:
            copy_plugins(node, "ptp", "host-local", "portmap", "loopback")
            ranges = [[{"subnet": cidr}] for cidr in cluster.pod_cidrs(node.name)]
            routes = [{"dst": "0.0.0.0/0" if family == 4 else "::/0"} for family in cluster.shape.families]
            ipam = {"type": "host-local", "ranges": ranges, "routes": routes}
            plugins = [
                {"type": "ptp", "ipMasq": False, "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ]
            found = {"cniVersion": "1.0.0", "name": "baseline", "plugins": plugins}
            node.machine.write("/etc/cni/net.d/10-baseline.conflist", json.dumps(found))
            self._routes(cluster, node)

    def boot(self, cluster: Cluster, node: Node) -> None:
        """The booted node has lost its routes to the others."""
        for other in cluster.nodes:
            if other is not node:
                self._routes(cluster, other, only=node.name)

    def uninstall(self, cluster: Cluster) -> None:
        """Only the list."""
        for node in cluster.nodes:
            node.machine.path("/etc/cni/net.d/10-baseline.conflist").unlink(missing_ok=True)

    def _routes(self, cluster: Cluster, node: Node, only: str = "") -> None:
        """Routes to a node's pods."""
        for machine in (cluster.tor.machine, *(other.machine for other in cluster.nodes)):
            if machine is not node.machine and only in ("", machine.name):
                hops = cluster.shape.addresses(node.name)
                for cidr, hop in zip(cluster.pod_cidrs(node.name), hops, strict=True):
                    machine.net("ip", "route", "replace", cidr, "via", hop)


class ByHand(Installer):
    """felix-py as docs/by-hand.md says, from a checkout after ``make``; services in place of systemd's units."""

    makes_ready = True

    _PROGRAM = "/opt/felix-py/.venv/bin/felix-py"

    def __init__(self, checkout: Path = CHECKOUT, agent_options: Sequence[str] = ()) -> None:
        self._checkout = checkout
        self._agent_options = agent_options
        # A virtualenv is links to the interpreter that it was made with.
        base = Path(sys.base_prefix)
        self.binds = [checkout] if base.is_relative_to("/usr") else [checkout, base]

    def install(self, cluster: Cluster) -> None:
        """Definitions, rights, program, peers, services."""
        cluster.kubectl("apply", *self._definitions())
        cluster.kubectl("apply", *self._rights())
        credentials = wait_for("the service account's token", lambda: self._credentials(cluster), 60)
        cluster.each_node(lambda node: self._install_on(cluster, node, credentials))

    def boot(self, cluster: Cluster, node: Node) -> None:
        """Both services."""
        node.machine.start("felix-py-bgp", self._PROGRAM, "bgp-sidecar")
        self._start_agent(node, *self._agent_options)

    def restart_agent(self, node: Node, *options: str) -> None:
        """End the agent and start it again with these options; returns when it is ready."""
        node.machine.stop("felix-py")
        self._start_agent(node, *options)
        agents.wait_ready(node)

    def uninstall(self, cluster: Cluster) -> None:
        """Services, the kernel, rights, definitions."""
        for node in cluster.nodes:
            for service in ("felix-py", "felix-py-bgp"):
                node.machine.stop(service)
            node.machine.run(self._PROGRAM, "cleanup")
        for objects in (self._rights(), self._definitions()):
            cluster.kubectl("delete", "--ignore-not-found", *objects)

    def _definitions(self) -> list[str]:
        return ["-k", str(self._checkout / "manifests" / "crds")]

    def _rights(self) -> list[str]:
        """``-f FILE …`` as the page's first ``kubectl apply`` has it."""
        page = (self._checkout / "docs" / "by-hand.md").read_text()
        found = re.search(r"^ *cluster\$ kubectl apply (-f .+)$", page, re.MULTILINE)
        assert found, "docs/by-hand.md has no kubectl apply"
        return [word if word == "-f" else str(self._checkout / word) for word in found[1].split()]

    def _credentials(self, cluster: Cluster) -> str:
        secret = json.loads(cluster.kubectl("-n", "kube-system", "get", "secret", "felix-py-token", "-o", "json"))
        return _kubeconfig(cluster.pki.api, secret["data"])

    def _install_on(self, cluster: Cluster, node: Node, credentials: str) -> None:
        node.machine.write("/etc/felix-py/kubeconfig", credentials, 0o600)
        node.machine.run("ln", "-sfn", str(self._checkout), "/opt/felix-py")
        node.machine.run(self._PROGRAM, "install-cni")
        copy_plugins(node, "portmap", "loopback")
        node.machine.write("/etc/felix-py/bgp.yaml", peers_file(cluster, address(node.name, 4)))
        self.boot(cluster, node)
        agents.wait_ready(node)

    def _start_agent(self, node: Node, *options: str) -> None:
        files = ["--kubeconfig", "/etc/felix-py/kubeconfig", "--bgp-config", "/etc/felix-py/bgp.yaml"]
        node.machine.start("felix-py", self._PROGRAM, "agent", *files, *options)


class Image(Installer):
    """felix-py as operators install it: an image on all nodes, peers in a ConfigMap, and ``kubectl apply``."""

    makes_ready = True

    def __init__(
        self,
        archive: Path = ARCHIVE,
        manifest: Path = CHECKOUT / "manifests" / "felix-py.yaml",
    ) -> None:
        self._archive = archive
        self._objects = ["-f", str(manifest)]
        self.binds = [archive.parent, manifest.parent]

    def install(self, cluster: Cluster) -> None:
        """What a node must have, then the manifest."""
        self.prepare(cluster)
        self.apply(cluster)

    def prepare(self, cluster: Cluster) -> None:
        """The image on all nodes, since no registry can be reached from inside, and peers."""
        if not self._archive.exists():
            raise FileNotFoundError(f"{self._archive}: run make image")
        for node in cluster.nodes:
            copy_plugins(node, "portmap", "loopback")
        cluster.each_node(lambda node: node.import_images(self._archive))
        self.configure(cluster)

    def apply(self, cluster: Cluster) -> None:
        """``kubectl apply``, until all agents are ready."""
        cluster.kubectl("apply", *self._objects)
        rollout = ["-n", "kube-system", "rollout", "status", "daemonset/felix-py", "--timeout=180s"]
        cluster.kubectl(*rollout, timeout=200)

    def uninstall(self, cluster: Cluster) -> None:
        """The objects; what that leaves on the nodes is ``felix-py cleanup``'s matter."""
        cluster.kubectl("delete", "--ignore-not-found", *self._objects, timeout=180)
        cluster.kubectl("-n", "kube-system", "delete", "--ignore-not-found", "configmap", "felix-py")

    def configure(self, cluster: Cluster) -> None:
        """Write the ConfigMap ``felix-py``: the same peers for all nodes."""
        metadata = {"name": "felix-py", "namespace": "kube-system"}
        data = {"bgp.yaml": peers_file(cluster, "" if 4 in cluster.shape.families else "hash")}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


class Overlay(Image):
    """The same by an overlay for clusters without routers: no peers are written, the overlay says all."""

    name: str
    """Its folder's."""

    def __init__(self) -> None:
        super().__init__()
        self._objects = ["-k", str(CHECKOUT / "manifests" / "overlays" / self.name)]

    def apply(self, cluster: Cluster) -> None:
        """Definitions come first: objects of theirs may be among the rest."""
        cluster.kubectl("apply", "-k", str(CHECKOUT / "manifests" / "crds"))
        cluster.kubectl("wait", "--for=condition=Established", "crd/bgpconfigurations.felixpy.io")
        super().apply(cluster)

    def configure(self, cluster: Cluster) -> None:
        """Nothing is to be written."""


class HostGateway(Overlay):
    """Routes from Node objects, and no BGP."""

    name = "host-gateway"


class Mesh(Overlay):
    """A BGP session between any two nodes."""

    name = "mesh"


def copy_plugins(node: Node, *names: str) -> None:
    """Put reference plugins where containerd looks for them, as a distribution's package does."""
    node.machine.run("cp", *(f"/usr/lib/cni/{name}" for name in names), "/opt/cni/bin/")


def peers_file(cluster: Cluster, router_id: str = "") -> str:
    """``bgp.yaml`` with the router as only peer, one session for each family.

    ``router_id`` is needed where a node has no IPv4 address.
    """
    peer = {"asNumber": TOR_ASN, "numAllowedLocalASNumbers": 1}
    peers = [{"peerIP": found, **peer} for found in cluster.shape.addresses(TOR)]
    identity = {"routerID": router_id} if router_id else {}
    return json.dumps({"asNumber": NODE_ASN, **identity, "peers": peers}, indent=1)  # JSON is YAML


def _kubeconfig(server: str, data: Mapping[str, str]) -> str:
    """Of a service account's secret, whose values are in base64."""
    found = {"server": server, "certificate-authority-data": data["ca.crt"]}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": found}],
            "users": [{"name": "felix-py", "user": {"token": base64.b64decode(data["token"]).decode()}}],
            "contexts": [{"name": "felix-py", "context": {"cluster": "c", "user": "felix-py"}}],
            "current-context": "felix-py",
        }
    )


INSTALLERS: Mapping[str, Callable[[], Installer]] = {
    "by-hand": ByHand,
    "image": Image,
    "host-gateway": HostGateway,
    "mesh": Mesh,
    "baseline": Baseline,
    "none": Installer,
}
