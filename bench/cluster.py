"""What felix-py costs a node of a real cluster that is idle: memory and CPU time of the agent and of its sidecar.

felix-py's image (``make image``) on a cluster that ``tests/cluster`` starts (``make cluster``). The node has
100 pods that run, and the API server 5,000 pods on 62 other nodes that are objects alone (``--quick``: 10, 200
and 3), in 20 namespaces with a policy each. Memory is what is resident (RSS), and each process' share (PSS:
pages that several have count in part). Aims: the agent at most 90 MB, the CPU time of all together under 0.5 %
of one core.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import Row, megabytes, show
from lab.namespaces import inside
from tests.cluster.cluster import Cluster
from tests.cluster.images import PAUSE
from tests.cluster.installers import Image
from tests.cluster.machine import wait_for
from tests.cluster.node import Node
from tests.cluster.plan import CONTROL_PLANE, Shape
from tests.cluster.workloads import policy

Json = dict[str, Any]

_NAMESPACES = 20
_WRITERS = 8
_PROGRAMS = {
    "agent": "felix-py agent",
    "ExaBGP": "bgp.launch server",
    "sidecar": "bgp.sidecar",
    "bridge": "bgp/bridge.py",
}
_AIM = {"agent": "aim: 90 MB"}
_SETTLE = 30.0


@dataclass(frozen=True, slots=True)
class _Size:
    local: int = 100
    remote: int = 5000
    nodes: int = 62
    seconds: float = 120.0


def main(quick: bool) -> None:
    """One cluster, measured once everything has come to rest."""
    size = _Size(local=10, remote=200, nodes=3, seconds=10.0) if quick else _Size()
    with TemporaryDirectory(prefix="felix-py-bench-") as folder, _cluster(Path(folder)) as cluster:
        _fill(cluster, size)
        node = cluster.nodes[0]
        time.sleep(1 if quick else _SETTLE)
        before, began = _processor(node), time.monotonic()
        time.sleep(size.seconds)
        seconds = time.monotonic() - began
        busy = {name: (after - before[name]) / seconds for name, after in _processor(node).items()}
        memory = {name: _memory(node, pid) for name, pid in _pids(node).items()}
    what = f"a node with {size.local} pods of {size.local + size.remote} in the cluster"
    show(
        f"Memory of {what} (RSS)",
        [Row(name, [rss], base=name == "bridge", note=_AIM.get(name, "")) for name, (rss, _) in memory.items()],
        unit=megabytes,
    )
    show(
        "The same, shared pages in part (PSS)",
        [Row(name, [pss], base=name == "bridge") for name, (_, pss) in memory.items()],
        unit=megabytes,
    )
    rows = [Row(name, [share]) for name, share in busy.items()]
    rows.append(Row("together", [sum(busy.values())], note="aim: under 0.5 %"))
    show(f"CPU time of {what}, in {seconds:.0f} idle seconds", rows, unit=lambda share: f"{100 * share:.2f} %")


@contextmanager
def _cluster(folder: Path) -> Iterator[Cluster]:
    lifeline, held = os.pipe()
    cluster = Cluster(f"b{os.getpid()}", folder / "cluster", Shape(nodes=1), Image(), lifeline=lifeline)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        os.close(lifeline)
        os.close(held)


# --- a cluster with many pods --------------------------------------------------------------------------


def _fill(cluster: Cluster, size: _Size) -> None:
    """Namespaces with policy, nodes and pods that are objects alone, and pods that run."""
    names = [f"bench-{number}" for number in range(_NAMESPACES)]
    cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    within = policy("within", ingress=[{"from": [{"podSelector": {}}]}])
    cluster.apply(*(within | {"metadata": {"name": "within", "namespace": name}} for name in names))
    for name in names:
        find = ["-n", name, "get", "serviceaccount", "default"]
        wait_for(f"{name}'s ServiceAccount", lambda find=find: cluster.kubectl(*find), 60)  # type: ignore[misc]
    nodes = [f"other-{number}" for number in range(size.nodes)]
    cluster.apply(*({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in nodes))
    local = [_pod(number, "local", cluster.nodes[0].name) for number in range(size.local)]
    remote = [_pod(number, "remote", nodes[number % size.nodes]) for number in range(size.remote)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        shares = [remote[writer::_WRITERS] for writer in range(_WRITERS)]
        for done in [pool.submit(_write, cluster, share) for share in (local, *shares)]:
            done.result()
    ready = ["wait", "--for=condition=Ready", "pods", "-A", "-l", "app=local", "--timeout=900s"]
    cluster.kubectl(*ready, timeout=910)


def _pod(number: int, app: str, node: str) -> Json:
    metadata = {"name": f"{app}-{number}", "namespace": f"bench-{number % _NAMESPACES}", "labels": {"app": app}}
    container = {"name": "c", "image": PAUSE, "imagePullPolicy": "Never"}
    spec = {
        "nodeName": node,
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _write(cluster: Cluster, pods: Sequence[Json]) -> None:
    """Create pods; those of nodes that are objects alone get an address, as from their kubelet."""
    api = _connect(cluster)
    for found in pods:
        metadata = found["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods"
        _request(api, "POST", path, found, "application/json")
        if metadata["labels"]["app"] == "remote":
            number = int(metadata["name"].partition("-")[2])
            address = f"10.244.{100 + number // 250 % 156}.{1 + number % 250}"
            status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
            body = {"status": status}
            _request(api, "PATCH", f"{path}/{metadata['name']}/status", body, "application/merge-patch+json")


def _connect(cluster: Cluster) -> http.client.HTTPSConnection:
    """A connection to the API server as administrator, from its own machine."""
    pki = cluster.pki.folder
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    host = cluster.shape.addresses(CONTROL_PLANE)[0]
    with inside(cluster.machines[CONTROL_PLANE].netns()):
        plain = socket.create_connection((host, 6443))
    api = http.client.HTTPSConnection(host, 6443, context=context)
    api.sock = context.wrap_socket(plain, server_hostname=host)
    return api


def _request(api: http.client.HTTPSConnection, verb: str, path: str, body: Json, kind: str) -> None:
    api.request(verb, path, json.dumps(body), {"Content-Type": kind})
    answer = api.getresponse()
    said = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{verb} {path}: {answer.status} {said[:300]!r}")


# --- the node ----------------------------------------------------------------------------------------


def _pids(node: Node) -> dict[str, str]:
    return {name: node.machine.run("pgrep", "-f", words).split()[0] for name, words in _PROGRAMS.items()}


def _processor(node: Node) -> dict[str, float]:
    """Seconds that each program has computed for (proc(5), stat), with its children that have ended."""
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for name, pid in _pids(node).items():
        fields = node.machine.run("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()
        found[name] = sum(map(int, fields[11:15])) / tick
    return found


def _memory(node: Node, pid: str) -> tuple[float, float]:
    """Resident bytes of a process, and its share of them."""
    text = node.machine.run("cat", f"/proc/{pid}/smaps_rollup")
    return tuple(int(re.search(rf"^{kind}: +(\d+) kB", text, re.M)[1]) * 1024 for kind in ("Rss", "Pss"))  # type: ignore[return-value,index]
