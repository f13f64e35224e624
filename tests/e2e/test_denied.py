"""A policy applied with kubectl denies a connection, and ``felix-py denies`` on the node says whose and why."""

from __future__ import annotations

import json
import re
import select
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.namespaces import inside
from policy.model import Family
from tests.support.lab import LabUnderTest, manifest
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
PORT = 7777
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"namespace": "shop", "name": "denies-test"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 80}]}]},
}
MESSAGE = "isolated by NetworkPolicy shop/denies-test (ingress); none of its rules allows it"


def knock(lab: LabUnderTest, source: str, address: str) -> None:
    """Send a packet from a pod; nobody answers."""
    with inside(lab.lab.pod_netns(source)):
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.sendto(b"?", (address, PORT))


def denied(lab: LabUnderTest, node: str, words: Sequence[str] = ()) -> list[dict[str, Any]]:
    lines = lab.sh(node, FELIX_PY, "denies", "-o", "json", *words).splitlines()
    return [event for line in lines if (event := json.loads(line))["destination"].get("port") == PORT]


def series(lab: LabUnderTest, node: str, name: str, **labels: str) -> float:
    _, body = lab.agent(node, "/metrics")
    for line in body.splitlines():
        found = re.fullmatch(rf"{name}_total\{{(.*)\}} (\S+)", line)
        if found and all(f'{key}="{value}"' in found[1] for key, value in labels.items()):
            return float(found[2])
    return 0.0


def test_who_was_denied_and_why(lab: LabUnderTest) -> None:
    node = lab.node_of("shop", "web-1")
    targets = lab.addresses("shop", "web-1")
    before = series(lab, node, "felix_py_denied_packets", direction="ingress", reason="isolated")
    with lab.applied("-f", "-", stdin=manifest(POLICY)):

        def told() -> dict[str, dict[str, Any]] | None:
            for address in targets.values():
                knock(lab, "dev/builder-1", address)
            found = {event["destination"]["address"]: event for event in denied(lab, node)}
            return found if set(targets.values()) <= found.keys() else None

        found = eventually(told, 20)
        assert found is not None
        sources = lab.addresses("dev", "builder-1")
        for family, address in targets.items():
            event = found[address]
            assert event["source"]["pod"] == "dev/builder-1"
            assert event["source"]["address"] == sources[Family(family)]
            assert event["destination"]["pod"] == event["endpoint"] == "shop/web-1"
            assert (event["direction"], event["protocol"], event["reason"]) == ("ingress", "UDP", "isolated")
            assert event["message"] == MESSAGE
            assert event["policies"] == [{"kind": "NetworkPolicy", "name": "denies-test", "namespace": "shop"}]
            assert event["node"] == node
        assert denied(lab, node, ["--pod", "shop/web-1"])
        assert not denied(lab, node, ["--namespace", "nobody"])
        shown = lab.sh(node, FELIX_PY, "denies", "-o", "wide").splitlines()
        line = next(line for line in shown if f" {next(iter(targets.values()))} {PORT}/UDP" in line)
        assert re.search(
            rf"DENIED ingress dev/builder-1 \S+ -> shop/web-1 \S+ {PORT}/UDP( x\d+)?: isolated by", line
        )

        def counted() -> bool:
            return series(lab, node, "felix_py_denied_packets", direction="ingress", reason="isolated") > before

        eventually(counted, 20)
    status = json.loads(lab.agent(node, "/status")[1])
    assert status["denyLog"]["state"] == "on"


def test_follow_in_the_lab(lab: LabUnderTest) -> None:
    node = lab.node_of("shop", "web-1")
    argv = [*lab.lab.enter(node), FELIX_PY, "denies", "--follow", "-o", "json", "--limit", "0"]
    with lab.applied("-f", "-", stdin=manifest(POLICY)):
        follower = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        try:
            shown = follower.stdout
            assert shown
            (address, *_) = lab.addresses("shop", "web-1").values()

            def told() -> Sequence[object]:
                """It may not listen yet: what was denied before is not told."""
                knock(lab, "dev/builder-1", address)
                return select.select([shown], [], [], 0)[0]

            eventually(told, 60)
            event = json.loads(shown.readline())
            assert (event["destination"]["pod"], event["message"]) == ("shop/web-1", MESSAGE)
        finally:
            follower.terminate()
            follower.communicate(timeout=10)
