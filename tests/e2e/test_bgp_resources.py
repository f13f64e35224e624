"""BGP declared by kubectl, in the lab: BIRD and packets are the witnesses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.topology import TOR, TOR_ASN
from tests.support.bird import Written
from tests.support.lab import LabUnderTest, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FILE = "/etc/felix-py/bgp.yaml"
SECRET = "felix-py-bgp-passwords"
SECONDS = 60.0


def resource(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "felixpy.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


class Declared:
    """One node whose peers are declared in the API."""

    def __init__(self, lab: LabUnderTest, node: str) -> None:
        self.lab, self.node = lab, node
        state = json.loads(lab.agent(node, "/status")[1])
        (self.cidr,) = state["podCIDRs"]
        (peer,) = state["peers"]
        self.gateway = peer["address"]
        protocol = self.birdc("show", "protocols", "all", self.protocol)
        self.asn = int(protocol.partition("Neighbor AS:")[2].split()[0])

    def birdc(self, *words: str) -> str:
        return self.lab.sh(TOR, "birdc", *words)

    @property
    def protocol(self) -> str:
        """BIRD's name of the session."""
        return f"{self.node}_ipv4"

    def since(self) -> Written:
        """The state of its session, with the time at which it came to be in it."""
        return Written.of(self.birdc("show", "protocols", self.protocol))

    def routed(self) -> bool:
        return self.cidr in self.birdc("show", "route", "protocol", self.protocol)

    def up(self) -> bool:
        return "Established" in self.birdc("show", "protocols", self.protocol) and self.routed()

    def peer(self, **spec: Any) -> str:
        fields = {"node": self.node, "peerIP": self.gateway, "asNumber": TOR_ASN} | spec
        return manifest(resource("BGPPeer", "tor", **fields))

    def told(self) -> dict[str, Any]:
        return {one["name"]: one["state"] for one in self.lab.node_status(self.node).get("bgpPeers", ())}

    def router_password(self, password: str) -> None:
        """The router's end of the session gets a password; empty: none."""
        line = f"neighbor.*as {self.asn};"
        with_password = f'&\\n  password "{password}";' if password else "&"
        where = f"/protocol bgp {self.node}_ipv4/,/^}}/"
        script = (
            "cd /run/bird; [ -e kept ] || cp bird.conf kept; "
            f"sed '{where}s/{line}/{with_password}/' kept > bird.conf; birdc configure"
        )
        said = self.lab.sh(TOR, "sh", "-c", script)
        # In progress: the session is being ended, which BIRD does not wait for.
        assert "Reconfigured" in said or "Reconfiguration in progress" in said, said


@contextmanager
def without_file(lab: LabUnderTest, node: str) -> Iterator[None]:
    lab.sh(node, "mv", FILE, f"{FILE}.kept")
    lab.kill(node, "agent")
    try:
        yield
    finally:
        lab.sh(node, "mv", f"{FILE}.kept", FILE)
        lab.kill(node, "agent")
        lab.wait_ready(node)


@contextmanager
def pod(lab: LabUnderTest, node: str) -> Iterator[str]:
    """A pod on a node; its address."""
    spec = {"nodeName": node, "containers": [{"name": "main", "image": "lab"}]}
    metadata = {"name": "declared", "namespace": "default"}
    with lab.applied(
        "-f", "-", stdin=manifest({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    ):
        lab.kubectl("wait", "--for=jsonpath={.status.phase}=Running", "pod/declared", "--timeout=60s")
        yield lab.get("pods", "declared", "default")["status"]["podIP"]


def filtered(it: Declared) -> None:
    """A filter that comes, is edited and goes: the routes follow, the session is not touched."""

    def rules(action: str) -> str:
        return manifest(resource("BGPFilter", "pods", exportV4=[{"action": action}]))

    session = it.since()
    with it.lab.applied("-f", "-", stdin=rules("Reject")):
        it.lab.kubectl("apply", "-f", "-", stdin=it.peer(filters=["pods"]))
        eventually(lambda: not it.routed(), SECONDS)
        it.lab.kubectl("apply", "-f", "-", stdin=rules("Accept"))
        eventually(it.routed, SECONDS)
        it.lab.kubectl("apply", "-f", "-", stdin=rules("Reject"))
        eventually(lambda: not it.routed(), SECONDS)
        it.lab.kubectl("apply", "-f", "-", stdin=it.peer())
        eventually(it.routed, SECONDS)
    assert it.since() == session


def test_a_node_peers_as_kubectl_says(plain_lab: LabUnderTest) -> None:
    lab, node = plain_lab, plain_lab.node_names[0]
    lab.wait_ready(node)
    it = Declared(lab, node)
    eventually(it.up, SECONDS)
    other = Declared(lab, plain_lab.node_names[1])
    steady = other.since()
    default = manifest(resource("BGPConfiguration", "default", asNumber=it.asn, nodeToNodeMeshEnabled=False))
    with without_file(lab, node):
        eventually(lambda: not it.up(), SECONDS)
        with lab.applied("-f", "-", stdin=default), lab.applied("-f", "-", stdin=it.peer()):
            eventually(it.up, SECONDS)
            eventually(lambda: it.told() == {"tor": "Established"}, SECONDS)
            with pod(lab, node) as address:
                lab.sh(TOR, "ping", "-c1", "-W10", address)
            secret = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": SECRET, "namespace": "kube-system"},
            }
            try:
                it.router_password("correct-horse")
                eventually(lambda: not it.up(), SECONDS)
                with lab.applied("-f", "-", stdin=manifest({**secret, "stringData": {"tor": "correct-horse"}})):
                    reference = {"secretKeyRef": {"name": SECRET, "key": "tor"}}
                    lab.kubectl("apply", "-f", "-", stdin=it.peer(password=reference))
                    eventually(it.up, SECONDS)
                # The Secret is gone, the session stays.
                eventually(lambda: "Secret" in json.dumps(lab.node_status(node)["notices"]), SECONDS)
                assert it.up()
            finally:
                it.router_password("")
        eventually(lambda: not it.up(), SECONDS)
        assert other.since() == steady
    eventually(it.up, SECONDS)
