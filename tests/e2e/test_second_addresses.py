"""A pod with two interfaces, and policies of a pod of another node against it: packets between two nodes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.kubelet import place_of
from lab.machines import CNI_BIN_DIR
from lab.runtime import CNIRuntime
from lab.sandbox_store import SandboxStore
from policy.model import Family
from tests.support.cni import WaitingRuntime, addresses, pod_args
from tests.support.lab import LabUnderTest, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(900)]

SECONDS = 60.0
NAMESPACE = "default"
TWO = "two-interfaces"
CLIENT = "client"
_ANSWERS, _SILENT = [True, True], [False, False]


def pod(name: str, node: str) -> dict[str, Any]:
    containers = [{"name": "c", "image": "busybox", "ports": [{"containerPort": 80}]}]
    metadata = {"namespace": NAMESPACE, "name": name, "labels": {"app": name}}
    spec = {"containers": containers, "nodeName": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def peer(name: str) -> dict[str, Any]:
    return {"matchLabels": {"app": name}}


def admin_denies() -> str:
    """The client may neither talk to the pod, nor be talked to by it: both are decided on the client's node."""
    pods = {"pods": {"namespaceSelector": {}, "podSelector": peer(TWO)}}
    spec = {
        "tier": "Admin",
        "priority": 5,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": peer(CLIENT)}},
        "egress": [{"action": "Deny", "to": [pods]}],
        "ingress": [{"action": "Deny", "from": [pods]}],
    }
    version = "policy.networking.k8s.io/v1alpha2"
    head = {"apiVersion": version, "kind": "ClusterNetworkPolicy", "metadata": {"name": "second-addresses"}}
    return manifest({**head, "spec": spec})


def client_policy(**rule: Any) -> str:
    """A NetworkPolicy of the client: this and nothing else, both ways."""
    spec = {
        "podSelector": peer(CLIENT),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [rule]}],
        "egress": [{"to": [rule]}],
    }
    metadata = {"namespace": NAMESPACE, "name": "second-addresses"}
    return manifest(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    )


class Two:
    """The pod with two interfaces; the second is made by a second network list, as Multus does it."""

    def __init__(self, lab: LabUnderTest, node: str, folder: Path) -> None:
        self.lab = lab
        self.node = node
        network = {"cniVersion": "1.0.0", "name": "second", "plugins": [{"type": "felix-py-cni"}]}
        folder.mkdir()
        (folder / "second.conflist").write_text(json.dumps(network))
        place = functools.partial(place_of, lab.lab.state, node)
        self._second = WaitingRuntime(CNIRuntime(folder, [Path(CNI_BIN_DIR)], place))
        self._container = ""

    def start(self) -> list[str]:
        """The addresses of both interfaces."""
        lab = self.lab
        lab.kubectl("apply", "-f", "-", stdin=manifest(pod(TWO, self.node)))
        first = eventually(lambda: lab.addresses(NAMESPACE, TWO), SECONDS)[Family.V4]
        uid = lab.get("pods", TWO, NAMESPACE)["metadata"]["uid"]
        sandbox = SandboxStore(lab.lab.state.sandboxes).find(uid)
        assert sandbox is not None
        self._container = sandbox.container
        args = {**pod_args(TWO, NAMESPACE), "K8S_POD_UID": uid}
        path = f"/run/netns/{sandbox.netns}"
        (second,) = addresses(self._second.add(self._container, path, "net1", args=args))
        return [first, second]

    def end(self) -> None:
        self._second.delete(self._container, "net1")
        self.lab.kubectl("delete", "pod", "-n", NAMESPACE, TWO, "--wait")


def reaches(lab: LabUnderTest, source: str, destination: str, own: str = "") -> bool:
    bound = ["--interface", own] if own else []
    argv = ["curl", "-s", "--max-time", "2", *bound, f"http://{destination}/"]
    return lab.lab.run(f"{NAMESPACE}/{source}", *argv, check=False).returncode == 0


@contextmanager
def announcing(lab: LabUnderTest) -> Iterator[None]:
    """All agents announce and believe annotations of pods' addresses; it takes a restart."""
    head = {"apiVersion": "felixpy.io/v1alpha1", "kind": "FelixConfiguration", "metadata": {"name": "default"}}

    def set_to(announced: bool) -> None:
        for node in lab.node_names:
            lab.kill(node, "agent")
        for node in lab.node_names:
            lab.wait_ready(node)
            said = json.loads(lab.agent(node, "/status")[1])["configuration"]
            assert said["announced"] is announced

    try:
        with lab.applied("-f", "-", stdin=manifest({**head, "spec": {"announcePodIPs": True}})):
            set_to(True)
            yield
    finally:
        set_to(False)


def test_policies_of_another_node_are_about_both_addresses(plain_lab: LabUnderTest, tmp_path: Path) -> None:
    lab = plain_lab
    here, there = lab.node_names
    two = Two(lab, there, tmp_path / "second.d")
    with lab.definitions(), announcing(lab), lab.applied("-f", "-", stdin=manifest(pod(CLIENT, here))):
        own = eventually(lambda: lab.addresses(NAMESPACE, CLIENT), SECONDS)[Family.V4]
        before = lab.kernel(here)
        both = two.start()

        def reached() -> list[bool]:
            return [reaches(lab, CLIENT, address) for address in both]

        def talked_to() -> list[bool]:
            return [reaches(lab, TWO, own, address) for address in both]

        def both_ways(expected: list[bool]) -> None:
            eventually(lambda: (reached(), talked_to()) == (expected, expected), SECONDS)

        both_ways(_ANSWERS)
        with lab.applied("-f", "-", stdin=admin_denies()):
            both_ways(_SILENT)
            lab.kill(here, "agent")
            lab.wait_ready(here)
            both_ways(_SILENT)
            two.end()
            both = two.start()  # with other addresses
            both_ways(_SILENT)
            lab.verified()
        both_ways(_ANSWERS)
        with lab.applied("-f", "-", stdin=client_policy(podSelector=peer(TWO))):
            both_ways(_ANSWERS)
        with lab.applied("-f", "-", stdin=client_policy(podSelector=peer("nobody"))):
            both_ways(_SILENT)
        but_second = {"cidr": "0.0.0.0/0", "except": [f"{both[1]}/32"]}
        with lab.applied("-f", "-", stdin=client_policy(ipBlock=but_second)):
            both_ways([True, False])
        two.end()
        eventually(lambda: lab.kernel(here) == before, SECONDS)
        leases = json.loads(lab.agent(there, "/ipam")[1])["leases"]
        assert TWO not in [lease["pod"] for lease in leases]
    lab.verified()
