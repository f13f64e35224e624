"""What cannot be right gets a clear error, and everything else goes on."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.support.lab import LabUnderTest, example, manifest, one_backend
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, one_backend]


def policy(name: str, **spec: Any) -> str:
    return manifest(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"podSelector": {}, **spec},
        }
    )


BAD_POLICIES = {
    "selector": (
        policy("selector", podSelector={"matchExpressions": [{"key": "a", "operator": "Near", "values": ["b"]}]}),
        ["spec.podSelector.matchExpressions[0].operator", "Near"],
    ),
    "label value": (
        policy("label", podSelector={"matchLabels": {"tier": "no spaces; -j ACCEPT"}}),
        ["spec.podSelector", "no spaces; -j ACCEPT"],
    ),
    "cidr": (
        policy("cidr", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]}]),
        ["spec.ingress[0].from[0].ipBlock.cidr", "10.0.0.0/33"],
    ),
    "except outside": (
        policy("except", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]),
        ["except", "11.0.0.0/16"],
    ),
    "protocol": (
        policy("protocol", ingress=[{"ports": [{"protocol": "ICMP", "port": 1}]}]),
        ["spec.ingress[0].ports[0].protocol", "ICMP"],
    ),
    "end port": (
        policy("range", ingress=[{"ports": [{"protocol": "TCP", "port": 90, "endPort": 80}]}]),
        ["endPort"],
    ),
    "unknown field": (policy("field", ingres=[]), ["ingres"]),
}


@pytest.mark.parametrize("kind", BAD_POLICIES)
def test_bad_policy_is_refused_with_its_field_and_changes_nothing(lab: LabUnderTest, kind: str) -> None:
    text, words = BAD_POLICIES[kind]
    rules = {node: lab.rules(node) for node in lab.node_names}
    error = lab.refused("apply", "-f", "-", stdin=text)
    assert not [word for word in words if word not in error], error
    assert {node: lab.rules(node) for node in lab.node_names} == rules


def test_policy_works_right_after_refused_ones(lab: LabUnderTest) -> None:
    for text, _ in BAD_POLICIES.values():
        lab.refused("apply", "-f", "-", stdin=text)
    lab.settle()
    with lab.applied("-f", example("20")):
        cells, _ = lab.settle()
        assert not all(cell.reached for cell in cells)
    lab.settle()


IDENTIFIERS = {"CNI_CONTAINERID": "c", "CNI_NETNS": "/nonexistent", "CNI_IFNAME": "eth0"}


@pytest.mark.parametrize(
    ("environment", "stdin", "code"),
    [
        ({"CNI_COMMAND": "ADD"}, "{}", 4),
        ({"CNI_COMMAND": "ADD", **IDENTIFIERS}, "rubbish", 6),
        ({"CNI_COMMAND": "EXPLODE", **IDENTIFIERS}, "{}", 4),
        ({"CNI_COMMAND": "ADD", **IDENTIFIERS, "CNI_CONTAINERID": "../../etc"}, "{}", 4),
    ],
    ids=["nothing", "stdin", "command", "identifiers"],
)
def test_garbage_cni_call_gets_a_cni_error(
    lab: LabUnderTest, environment: dict[str, str], stdin: str, code: int
) -> None:
    node = lab.node_names[0]
    words = [f"{name}={value}" for name, value in {"CNI_PATH": "/opt/cni/bin", **environment}.items()]
    argv = [*lab.lab.enter(node), "env", "-i", *words, "/opt/cni/bin/felix-py-cni"]
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode
    answer = json.loads(done.stdout)
    assert answer["code"] == code, answer
    assert answer["msg"]
    assert lab.agent(node, "/readyz")[0] == 200


def test_pod_that_cannot_start_gets_an_event_and_the_others_start(lab: LabUnderTest) -> None:
    """A chained plugin is missing; the pod's Event says which, and it starts once the plugin is there."""
    node = lab.node_names[0]
    stuck = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "dev", "name": "stuck"},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "image": "busybox", "ports": [{"containerPort": 81, "hostPort": 8181}]}],
        },
    }
    plugins = lab.lab.state.machine(node) / "cni-bin"
    (plugins / "portmap").rename(plugins / "portmap-away")
    try:
        lab.kubectl("apply", "-f", "-", stdin=manifest(stuck))

        def told() -> list[str]:
            events = lab.get("events", namespace="dev", fields="involvedObject.name=stuck")["items"]
            return [event["message"] for event in events if event["reason"] == "FailedCreatePodSandBox"]

        (message, *_) = eventually(told, 20)
        assert "portmap" in message
    finally:
        (plugins / "portmap-away").rename(plugins / "portmap")
    eventually(lambda: lab.addresses("dev", "stuck"), 20)
    lab.settle()
    lab.kubectl("delete", "pod", "-n", "dev", "stuck")
    lab.settle()
