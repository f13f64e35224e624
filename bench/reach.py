"""A new pod of a real cluster: when it answers a pod of another node, whose policy must know its address.

Two nodes of a cluster that ``tests/cluster`` starts (``make cluster``), felix-py on them by hand. The client's
policy lets it reach pods of a label alone, so its node must know the new pod's address. The kubelet reports
that a second or so after the pod is connected; with ``--announce-pod-ips`` the pod's agent does at once, in an
annotation. The clock runs from the moment when the new pod answers its own node until it answers the client;
both try all the time. Agents start anew for each row, in turn.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import Row, show
from lab.namespaces import inside
from tests.cluster.cluster import Cluster
from tests.cluster.installers import ByHand
from tests.cluster.machine import CHECKOUT, wait_for
from tests.cluster.places import of_pod
from tests.cluster.plan import Shape
from tests.cluster.witness import Holders, watching_kernels
from tests.cluster.workloads import HTTP, Namespace, pod, policy

_TRY = 0.05
"""Seconds for one connection: what policy drops gets no answer."""

_LONGEST = 60.0
_OPTIONS = {"as the kubelet reports it": (), "--announce-pod-ips": ("--announce-pod-ips",)}


def main(quick: bool) -> None:
    """One cluster; both rows in turn."""
    answers = [Row(name, base=not options) for name, options in _OPTIONS.items()]
    connected = [Row(name, base=not options) for name, options in _OPTIONS.items()]
    with TemporaryDirectory(prefix="felix-py-bench-") as folder, _cluster(Path(folder)) as (cluster, installer):
        cluster.kubectl("apply", "-f", str(CHECKOUT / "manifests" / "components" / "pod-ips" / "rbac.yaml"))
        namespace = Namespace(cluster)
        namespace.apply(
            policy(
                "client",
                podSelector={"matchLabels": {"app": "client"}},
                policyTypes=["Egress"],
                egress=[{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}],
            ),
            pod("client", {"app": "client"}, nodeName=cluster.nodes[0].name),
        )
        namespace.wait_ready("client")
        netns = of_pod(namespace, "client").netns
        for turn in range(1 if quick else 3):
            for options, answer, connect in zip(_OPTIONS.values(), answers, connected, strict=True):
                for node in cluster.nodes:
                    installer.restart_agent(node, *options)
                with watching_kernels(cluster) as routed:
                    for number in range(2 if quick else 5):
                        name = f"server-{turn}-{len(options)}-{number}"
                        took = _new_pod(namespace, name, netns, routed)
                        answer.values.append(took[0])
                        connect.values.append(took[1])
    show("reach: from the new pod's first answer to its own node until it answers a pod of another node", answers)
    show("reach: the same from the pod's route on its node, as ADD ends, container start included", connected)


@contextmanager
def _cluster(folder: Path) -> Iterator[tuple[Cluster, ByHand]]:
    lifeline, held = os.pipe()
    installer = ByHand()
    cluster = Cluster(f"b{os.getpid()}", folder / "cluster", Shape(nodes=2), installer, lifeline=lifeline)
    try:
        cluster.up()
        yield cluster, installer
    finally:
        cluster.down()
        os.close(lifeline)
        os.close(held)


def _new_pod(namespace: Namespace, name: str, client: Path, routed: Holders) -> tuple[float, float]:
    """Seconds until the client got through: since the pod's first answer, and since it had its route."""
    node = namespace.cluster.nodes[1]
    before = routed.addresses()
    namespace.apply(pod(name, {"app": "server"}, nodeName=node.name))
    (address,) = wait_for(f"{name}'s route", lambda: _new(routed, before), _LONGEST, 0.002)
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        own, other = pool.map(_until_connected, (node.machine.netns(), client), (address, address))
    namespace.kubectl("delete", "pod", name)
    wait_for(f"the end of {name}", lambda: address not in routed.addresses(), _LONGEST)
    return max(0.0, other - own), other - began


def _new(routed: Holders, before: Set[str]) -> set[str]:
    return routed.addresses() - before


def _until_connected(netns: Path, address: str) -> float:
    """When a connection from there first came about, by the monotonic clock.

    Raises:
        TimeoutError: none did in a minute.
    """
    deadline = time.monotonic() + _LONGEST
    while time.monotonic() < deadline:
        with inside(netns):
            probe = socket.socket()
        with probe:
            probe.settimeout(_TRY)
            try:
                probe.connect((address, HTTP))
                return time.monotonic()
            except OSError:
                time.sleep(0.001)
    raise TimeoutError(f"no connection to {address} in {_LONGEST:.0f} s")
