"""Somebody spoils what is ours on a node: it is right again long before the next refresh (90 s)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from felix_py.layout import ROUTE_PROTOCOL_PODS
from tests.support.lab import LabUnderTest, Requests, example
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

POD = ("dev", "dns-1")
PORT = 53


def drift(lab: LabUnderTest, node: str, kind: str) -> float:
    status, body = lab.agent(node, "/metrics")
    assert status == 200, body
    found = re.search(rf'^felix_py_drift_total{{kind="{kind}"}} (\S+)$', body, re.MULTILINE)
    assert found
    return float(found[1])


def counted(lab: LabUnderTest, node: str, kind: str, spoil: Callable[[], object], count: int) -> None:
    """Spoil, and wait until so much was noticed."""
    before = drift(lab, node, kind)
    spoil()
    eventually(lambda: drift(lab, node, kind) == before + count)


def test_a_pod_whose_route_is_deleted_answers_again(lab: LabUnderTest) -> None:
    node = lab.node_of(*POD)
    client = next(pod for pod in lab.get("pods", namespace="shop")["items"] if pod["spec"]["nodeName"] != node)
    netns = lab.lab.pod_netns(f"shop/{client['metadata']['name']}")
    for family, address in lab.addresses(*POD).items():
        with Requests(netns, address, PORT) as flow:
            eventually(lambda: len(flow.answered) > 20)
            route = ("route", "del", address, "proto", str(ROUTE_PROTOCOL_PODS))
            counted(lab, node, "route", lambda: lab.sh(node, "ip", f"-{int(family)}", *route), 1)  # noqa: B023
            sent = flow.sent
            eventually(lambda: max(flow.answered) > sent + 20)  # noqa: B023


def test_a_pod_whose_interface_is_set_down_answers_again(lab: LabUnderTest) -> None:
    node = lab.node_of(*POD)
    address = next(iter(lab.addresses(*POD).values()))
    interface = re.search(r" dev (\S+) ", lab.sh(node, "ip", "route", "get", address))
    assert interface
    counted(lab, node, "link", lambda: lab.sh(node, "ip", "link", "set", interface[1], "down"), 1)
    lab.settle()


def test_policy_is_in_force_again_after_a_flush(lab: LabUnderTest) -> None:
    node = lab.node_of("shop", lab.get("pods", namespace="shop")["items"][0]["metadata"]["name"])
    with lab.applied("-f", example("20")):
        lab.settle()
        before = lab.rules(node)
        for tool in ("iptables", "ip6tables"):
            for command in (("-F", "FORWARD"), ("-F", "FELIX-FORWARD")):
                kind = "hook" if command[1] == "FORWARD" else "chain"
                argv = (f"{tool}-{lab.backend}", "-w", *command)
                counted(lab, node, kind, lambda: lab.sh(node, *argv), 1)  # noqa: B023
        eventually(lambda: lab.rules(node) == before)
        lab.settle()
    lab.settle()
