"""Places of a cluster for :mod:`tests.cluster.traffic`, and the streams between all of its nodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.cluster.machine import CommandFailed, Machine, wait_for
from tests.cluster.traffic import PORT, Kind, Place, Stream, Traffic
from tests.cluster.workloads import Namespace, pod, policy, service


def of_machine(machine: Machine) -> Place:
    """The network of a machine itself."""
    return Place(machine.name, machine.netns())


def of_pod(namespace: Namespace, name: str) -> Place:
    """The network of a pod that runs."""
    found = namespace.get("pod", name)
    machine = namespace.cluster.machines[found["spec"]["nodeName"]]
    container = found["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    tasks = machine.run("ctr", "-n", "k8s.io", "tasks", "ls").splitlines()
    pid = next(line.split()[1] for line in tasks if line.startswith(container))
    return Place(name, machine.netns(int(pid)))


class Mesh:
    """On each node a pod ``mesh-NODE``, which all may reach, and ``closed-NODE``, which is cut off by policy.

    ``mesh`` is also a Service with a node port.
    """

    def __init__(self, namespace: Namespace, without: str = "") -> None:
        """Waits until everything passes that may. ``without`` is a node that is left out."""
        self.namespace = namespace
        cluster = namespace.cluster
        nodes = [node.name for node in cluster.nodes if node.name != without]
        kinds = ("mesh", "closed")
        world = [
            {"ipBlock": {"cidr": "0.0.0.0/0" if family == 4 else "::/0"}} for family in cluster.shape.families
        ]
        own = {kind: {"podSelector": {"matchLabels": {"app": kind}}} for kind in kinds}
        ports = [{"port": PORT, "protocol": protocol} for protocol in ("TCP", "UDP")]
        namespace.apply(
            policy("default-deny", policyTypes=["Ingress"]),
            policy("closed", **own["closed"], policyTypes=["Ingress", "Egress"]),
            policy("mesh", **own["mesh"], ingress=[{"from": [own["mesh"], *world], "ports": ports}]),
            *(pod(f"{kind}-{node}", {"app": kind}, nodeName=node) for node in nodes for kind in kinds),
            self._service(cluster.shape.families),
        )
        namespace.wait_ready()
        places = {f"{kind}-{node}": of_pod(namespace, f"{kind}-{node}") for node in nodes for kind in kinds}
        self.servers = list(places.values())
        self._places = places
        self._nodes = nodes
        self._outside = of_machine(cluster.machines["outside"])
        self._addresses = {name: namespace.addresses(name) for name in places}
        self._spec = namespace.get("service", "mesh")["spec"]
        wait_for("all streams to pass", self._all_pass, 90)

    def traffic(self, rate: float = 1000.0) -> Traffic:
        """Streams between pods of all nodes, from outside, to the Service, by node ports, and forbidden ones."""
        return Traffic(self._streams(), self.servers, rate)

    def _all_pass(self) -> bool:
        with self.traffic() as trial:
            time.sleep(1)
        if all(stream.well for stream in trial.stop()):
            return True
        raise CommandFailed(trial.report())

    def _service(self, families: Sequence[int]) -> dict[str, Any]:
        found = service("mesh", families, "NodePort")
        protocols = ("TCP", "UDP")
        found["spec"]["ports"] = [{"name": each.lower(), "protocol": each, "port": PORT} for each in protocols]
        return found

    def _streams(self) -> list[Stream]:
        streams: list[Stream] = []
        for node in self._nodes:
            source = self._places[f"mesh-{node}"]
            for other in self._nodes:
                if other != node:
                    streams += self._to(source, f"mesh-{other}", "udp", "tcp")
                    streams += self._to(source, f"closed-{other}", "udp", "connect", forbidden=True)
                    streams += self._to(self._places[f"closed-{node}"], f"mesh-{other}", "udp", forbidden=True)
            streams += self._to(self._outside, f"mesh-{node}", "udp", "tcp", "connect")
            for address in self._spec["clusterIPs"]:
                streams += [Stream(kind, source, address, PORT, "the Service") for kind in ("udp", "connect")]
            port = next(found["nodePort"] for found in self._spec["ports"] if found["protocol"] == "TCP")
            for address in self.namespace.cluster.shape.addresses(node):
                streams.append(Stream("connect", self._outside, address, port, f"{node}'s node port"))
        return streams

    def _to(self, source: Place, to: str, *kinds: Kind, forbidden: bool = False) -> list[Stream]:
        addresses = self._addresses[to]
        return [Stream(kind, source, address, PORT, to, forbidden) for address in addresses for kind in kinds]
