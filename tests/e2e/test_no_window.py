"""A pod's first packet is already subject to its policy."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from lab.topology import TOR
from tests.support.lab import Flood, LabUnderTest, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

PORT = 9999
PODS = 6
NAMESPACE: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}}
DENY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"namespace": "late", "name": "deny"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}


def pods(generation: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "late", "name": f"{generation}-{number}"},
            "spec": {
                "containers": [
                    {"name": "late", "image": "busybox", "ports": [{"containerPort": PORT, "protocol": "UDP"}]}
                ]
            },
        }
        for number in range(PODS)
    ]


def all_running(lab: LabUnderTest) -> bool:
    found = lab.get("pods", namespace="late")["items"]
    return len(found) == PODS and all(pod.get("status", {}).get("phase") == "Running" for pod in found)


def candidates(lab: LabUnderTest) -> list[str]:
    """The first addresses of each node's pod CIDRs: more than the pods there are now and those to come."""
    return [
        str(ipaddress.ip_network(cidr)[offset])
        for node in lab.nodes
        for cidr in node.pod_cidrs.values()
        for offset in range(1, 41)
    ]


def test_no_answer_from_the_first_moment_under_default_deny(lab: LabUnderTest) -> None:
    """Pods listen before their interface exists, so any packet that comes through would be answered.

    The flood comes from pods on both nodes and from outside; from the node itself it would be allowed.
    """
    by_node = {pod["spec"]["nodeName"]: pod for pod in lab.get("pods", namespace="observability")["items"]}
    by_node |= {pod["spec"]["nodeName"]: pod for pod in lab.get("pods", namespace="dev")["items"]}
    sources = [
        lab.lab.pod_netns(f"{p['metadata']['namespace']}/{p['metadata']['name']}") for p in by_node.values()
    ]
    sources.append(lab.netns(TOR))
    lab.kubectl("apply", "-f", "-", stdin=manifest(NAMESPACE, DENY))
    try:
        with Flood(sources, candidates(lab), PORT) as flood:
            eventually(lambda: flood.sweeps > 2)
            lab.kubectl("apply", "-f", "-", stdin=manifest(*pods("first")))
            eventually(lambda: all_running(lab), 60)
            addresses = {
                a for pod in pods("first") for a in lab.addresses("late", pod["metadata"]["name"]).values()
            }
            assert addresses <= set(candidates(lab)), "pods have addresses that were not flooded"
            sweeps = flood.sweeps
            eventually(lambda: flood.sweeps > sweeps + 10)
            assert not flood.answers
            # The same flood without the policy: it does see answers.
            lab.kubectl("delete", "-f", "-", stdin=manifest(DENY))
            eventually(lambda: addresses <= flood.answers, 20)
    finally:
        lab.kubectl("delete", "namespace", "late", "--ignore-not-found")
    lab.settle()
