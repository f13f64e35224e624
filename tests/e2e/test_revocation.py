"""``kubectl apply`` of a policy ends what it denies, and nothing else; a pod that goes leaves no connections."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from policy.model import Family
from tests.support.lab import LabUnderTest, manifest
from tests.support.streams import Stream, Streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

CLOSED, OPEN = 7100, 7101
ENOUGH = 60
"""Records; about a third of a second."""

POLICY: dict[str, Any] = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"namespace": "shop", "name": "revocation-test"},
    "spec": {
        "podSelector": {"matchLabels": {"tier": "db"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"tier": "web"}}}], "ports": [{"port": OPEN}]}],
    },
}
PASSER_BY: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"namespace": "dev", "name": "passer-by"},
    "spec": {"containers": [{"name": "c", "image": "busybox", "ports": [{"containerPort": 80}]}]},
}


def connect(lab: LabUnderTest, streams: Streams, source: str, destination: str, port: int) -> list[Stream]:
    """A connection of each family between two pods (``namespace/name``)."""
    ends = [lab.addresses(*pod.split("/")) for pod in (source, destination)]
    places = [lab.lab.pod_netns(pod) for pod in (source, destination)]
    return [streams.open(places[0], ends[0][f], places[1], ends[1][f], port) for f in Family]


def all_talk(streams: list[Stream], more: int = ENOUGH) -> None:
    targets = [stream.progress + more for stream in streams]
    eventually(lambda: all(s.progress >= target for s, target in zip(streams, targets, strict=True)), 20)


def tracked(lab: LabUnderTest, node: str, address: str) -> list[str]:
    """A node's conntrack entries that have an address anywhere, as conntrack(8) shows them."""
    family = "ipv6" if ":" in address else "ipv4"
    lines = lab.sh(node, "conntrack", "-L", "-f", family, "-o", "id").splitlines()
    return sorted(line for line in lines if f"={address} " in line)


def ident(lab: LabUnderTest, node: str, stream: Stream) -> str:
    (source, port), (destination, _) = (
        end[:2] for end in (stream.client.sock.getsockname(), stream.client.sock.getpeername())
    )
    # All of it: another connection may have the same port, and the same address in its answers.
    asked = f"src={source} dst={destination} sport={port} "
    (line,) = [line for line in tracked(lab, node, source) if asked in line]
    return line[line.rindex(" id=") :]


def test_a_policy_ends_what_it_denies_and_nothing_beside_it(lab: LabUnderTest) -> None:
    node = lab.node_of("shop", "db-1")
    before = lab.metric(node, "felix_py_flows_revoked_total")
    with Streams() as streams:
        denied, kept = [], []
        # From both nodes: the three of them are spread.
        for web in ("shop/web-1", "shop/web-2", "shop/web-3"):
            denied += connect(lab, streams, web, "shop/db-1", CLOSED)
            kept += connect(lab, streams, web, "shop/db-1", OPEN)
        beside = connect(lab, streams, "shop/db-1", "shop/api-1", CLOSED)
        beside += connect(lab, streams, "shop/web-1", "shop/api-2", CLOSED)
        all_talk([*denied, *kept, *beside])
        idents = [ident(lab, node, stream) for stream in kept]
        doomed = {ident(lab, node, stream) for stream in denied}
        with lab.applied("-f", "-", stdin=manifest(POLICY)):

            def ended_all() -> bool:
                lines = [
                    line
                    for address in lab.addresses("shop", "db-1").values()
                    for line in tracked(lab, node, address)
                ]
                return doomed.isdisjoint(line[line.rindex(" id=") :] for line in lines)

            eventually(ended_all, 20)
            ended = time.monotonic()
            all_talk([*kept, *beside], 2 * ENOUGH)
            assert [stream.name for stream in denied if stream.heard_after(ended)] == []
            assert [stream.name for stream in (*kept, *beside) if not stream.intact] == []
            # Others of an earlier test may be denied as well.
            assert lab.metric(node, "felix_py_flows_revoked_total") >= before + len(denied)
            assert [ident(lab, node, stream) for stream in kept] == idents
            shown = json.loads(lab.agent(node, "/flows")[1])
            assert {
                "source": kept[0].client.sock.getsockname()[0],
                "destination": kept[0].client.sock.getpeername()[0],
                "protocol": "TCP",
                "port": OPEN,
                "replied": True,
            } in shown
            assert CLOSED not in {
                flow["port"] for flow in shown if flow["destination"] in lab.addresses("shop", "db-1").values()
            }
    lab.settle()


def test_a_pod_that_goes_takes_its_connections_along(lab: LabUnderTest) -> None:
    with lab.applied("-f", "-", stdin=manifest(PASSER_BY)):
        eventually(lambda: lab.get("pods", "passer-by", "dev").get("status", {}).get("phase") == "Running", 30)
        node, addresses = lab.node_of("dev", "passer-by"), lab.addresses("dev", "passer-by")
        neighbour = next(
            f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            for pod in lab.get("pods", namespace="shop")["items"]
            if pod["spec"]["nodeName"] == node
        )
        with Streams() as streams:
            going = connect(lab, streams, "dev/client-1", "dev/passer-by", OPEN)
            going += connect(lab, streams, "dev/passer-by", neighbour, OPEN)
            kept = connect(lab, streams, "dev/client-1", neighbour, OPEN)
            all_talk([*going, *kept])
            idents = [ident(lab, node, stream) for stream in kept]
            assert all(len(tracked(lab, node, address)) >= 2 for address in addresses.values())
            lab.kubectl("delete", "pod", "-n", "dev", "passer-by")
            eventually(lambda: not any(tracked(lab, node, address) for address in addresses.values()), 20)
            all_talk(kept)
            assert all(stream.intact for stream in kept)
            assert [ident(lab, node, stream) for stream in kept] == idents
            assert lab.metric(node, "felix_py_flows_released_total") >= len(going)
