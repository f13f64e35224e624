"""FelixConfiguration and NodeNetworkStatus by kubectl, in the lab."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.lab import LabUnderTest, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def configuration(name: str = "default", **spec: Any) -> str:
    head = {"apiVersion": "felixpy.io/v1alpha1", "kind": "FelixConfiguration", "metadata": {"name": name}}
    return manifest({**head, "spec": spec})


def of_agent(lab: LabUnderTest, node: str) -> dict[str, Any]:
    code, body = lab.agent(node, "/status")
    found: dict[str, Any] = json.loads(body)["configuration"] if code == 200 else {}
    return found


def setting(lab: LabUnderTest, node: str, name: str) -> Any:
    return of_agent(lab, node).get("settings", {}).get(name)


FINE = {
    **dict.fromkeys(("Ready", "PolicyInForce", "RoutesInstalled", "PeersUp"), "True"),
    **dict.fromkeys(("BGPInForce", "SettingsInForce", "PrefixLimitsKept", "PrefixesAnnounced"), "True"),
    "Drained": "False",
}


def conditions(lab: LabUnderTest, node: str) -> dict[str, str]:
    return {one["type"]: one["status"] for one in lab.node_status(node).get("conditions", ())}


def ready(lab: LabUnderTest, node: str) -> str:
    return conditions(lab, node).get("Ready", "")


@contextmanager
def pod(lab: LabUnderTest, name: str, node: str) -> Iterator[str]:
    container = {"name": "main", "image": "lab", "ports": [{"containerPort": 80}]}
    spec = {"nodeName": node, "containers": [container]}
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    with lab.applied("-f", "-", stdin=manifest(obj)):
        lab.kubectl("wait", "--for=jsonpath={.status.phase}=Running", f"pod/{name}", "--timeout=30s")
        yield f"default/{name}"


def test_every_node_tells_of_itself(plain_lab: LabUnderTest) -> None:
    lab = plain_lab
    for node in lab.node_names:
        eventually(lambda node=node: lab.node_status(node).get("peers") == "1/1", 90)  # type: ignore[misc]
        eventually(lambda node=node: conditions(lab, node) == FINE, 90)  # type: ignore[misc]
    lines = lab.kubectl("get", "nns").splitlines()
    assert lines[0].split() == ["NAME", "READY", "ENDPOINTS", "PEERS", "ROUTES", "BACKEND", "VERSION", "AGE"]
    assert [line.split()[:2] for line in lines[1:]] == [[node, "True"] for node in sorted(lab.node_names)]
    assert all(len(line) <= 100 for line in lines)
    for node in lab.node_names:
        found = lab.get("nodenetworkstatuses", node)
        (owner,) = found["metadata"]["ownerReferences"]
        assert owner["uid"] == lab.get("nodes", node)["metadata"]["uid"]
        assert found["status"]["backend"] == "nft"
        assert found["status"]["families"] in (["ipv4"], ["ipv4", "ipv6"])
        assert len(json.dumps(found)) < 4096


def test_a_live_setting_takes_effect_on_all_nodes_and_on_one(plain_lab: LabUnderTest) -> None:
    lab = plain_lab
    one, other = lab.node_names
    with lab.applied("-f", "-", stdin=configuration(mtu=1400)):
        for node in lab.node_names:
            eventually(lambda node=node: setting(lab, node, "mtu") == 1400)  # type: ignore[misc]
        with lab.applied("-f", "-", stdin=configuration(f"node.{one}", mtu=1300)):
            eventually(lambda: setting(lab, one, "mtu") == 1300)
            with pod(lab, "narrow", one) as narrow, pod(lab, "wide", other) as wide:
                assert " mtu 1300 " in lab.sh(narrow, "ip", "link", "show", "eth0")
                assert " mtu 1400 " in lab.sh(wide, "ip", "link", "show", "eth0")
        eventually(lambda: setting(lab, one, "mtu") == 1400)
    for node in lab.node_names:
        eventually(lambda node=node: setting(lab, node, "mtu") == 0)  # type: ignore[misc]


def test_another_one_waits_for_the_restart_and_says_so(plain_lab: LabUnderTest) -> None:
    lab = plain_lab
    node = lab.node_names[0]

    def masquerades() -> bool:
        return "MASQUERADE" in lab.sh(node, "iptables-nft-save", "-t", "nat")

    assert masquerades()
    with lab.applied("-f", "-", stdin=configuration(natOutgoing=False)):
        eventually(lambda: lab.node_status(node).get("restartRequired") == ["natOutgoing"], 30)
        assert masquerades()
        assert "restart-due" in [notice["kind"] for notice in lab.node_status(node)["notices"]]
        lab.kill(node, "agent")
        lab.wait_ready(node)
        assert not masquerades()
        eventually(lambda: lab.node_status(node).get("restartRequired") == [], 30)
    eventually(lambda: of_agent(lab, node).get("restartRequired") == ["natOutgoing"])
    for name in lab.node_names:
        lab.kill(name, "agent")
        lab.wait_ready(name)
    assert masquerades()
    lab.verified()


def test_a_wrong_value_is_refused_in_words(plain_lab: LabUnderTest) -> None:
    words = plain_lab.refused("apply", "-f", "-", stdin=configuration(mtu=60))
    assert "IPv4 needs 68 at least and the kernel takes 65535 at most" in words
    words = plain_lab.refused("apply", "-f", "-", stdin=configuration("mine", mtu=1400))
    assert "the name must be default, for all nodes, or node.NAME" in words


def test_the_status_goes_on_after_a_killed_agent_and_a_deleted_object(plain_lab: LabUnderTest) -> None:
    lab = plain_lab
    node = lab.node_names[1]
    eventually(lambda: ready(lab, node) == "True", 90)
    lab.kubectl("delete", "nns", node)
    lab.kill(node, "agent")
    eventually(lambda: node in lab.kubectl("get", "nns"), 60)
    eventually(lambda: ready(lab, node) == "True", 60)
