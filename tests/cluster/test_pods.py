"""A pod's life as kubelet, containerd and operators see it."""

from __future__ import annotations

import statistics
import subprocess
import time

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.images import AGNHOST
from tests.cluster.machine import wait_for
from tests.cluster.workloads import HTTP, Namespace, pod, policy, targets

pytestmark = pytest.mark.root


def test_host_port_by_portmap(cluster: Cluster, namespace: Namespace) -> None:
    found = pod("web", nodeName="node1")
    found["spec"]["containers"][0]["ports"][0]["hostPort"] = 31999
    namespace.apply(found)
    namespace.wait_ready("web")
    address = cluster.shape.addresses("node1")[0]
    for machine in ("outside", "node2", "node1"):
        cluster.machines[machine].connects_soon(address, 31999)
    namespace.kubectl("delete", "pod", "web")
    wait_for("the port's end", lambda: not cluster.machines["outside"].connects(address, 31999), 30)


def test_kubectl_logs_exec_and_port_forward(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(pod("web", nodeName="node2"))
    namespace.wait_ready("web")
    assert "Started HTTP server" in namespace.kubectl("logs", "web")
    assert namespace.kubectl("exec", "web", "--", "hostname", "-i").split() == namespace.addresses("web")
    machine = cluster.control_plane.machine
    kubectl = cluster.control_plane.kubectl_command()
    argv = [*machine.enter(), *kubectl, "-n", namespace.name, "port-forward", "pod/web", f"9999:{HTTP}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=machine.environment()) as forward:
        assert forward.stdout is not None
        try:
            assert "Forwarding from" in forward.stdout.readline()
            assert machine.run("curl", "-s", "--max-time", "10", "http://127.0.0.1:9999/hostname") == "web"
        finally:
            forward.kill()


def test_first_packet_of_a_pod_meets_policy(namespace: Namespace) -> None:
    """CNI ADD returns once policy is in the kernel, so there is no moment in which everything passes."""
    namespace.apply(
        pod("server", {"app": "server"}, nodeName="node1"),
        policy("closed", podSelector={"matchLabels": {"app": "closed"}}, policyTypes=["Egress"]),
    )
    namespace.wait_ready("server")
    (target,) = targets(namespace.addresses("server"))
    script = f"/agnhost connect --timeout=2s {target} 2> /dev/null && echo passed || echo denied"
    once = {"name": "once", "image": AGNHOST, "imagePullPolicy": "Never", "command": ["sh", "-c", script]}
    names = {f"{kind}-{number}": kind for number in range(3) for kind in ("closed", "open")}
    for name, kind in names.items():
        namespace.apply(pod(name, {"app": kind}, nodeName="node2", containers=[once], restartPolicy="Never"))
    for name in names:
        namespace.kubectl(
            "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s", timeout=70
        )
    said = {name: namespace.kubectl("logs", name).split()[-1] for name in names}
    assert said == {name: "denied" if kind == "closed" else "passed" for name, kind in names.items()}


def test_time_from_create_to_running(cluster: Cluster, namespace: Namespace) -> None:
    """One after the other on an idle node; what a machine under load needs is printed and not judged."""
    seconds = []
    outside = cluster.machines["outside"]
    for number in range(5):
        began = time.monotonic()
        namespace.apply(pod(f"pod-{number}", nodeName=f"node{1 + number % len(cluster.nodes)}"))
        namespace.wait_ready(f"pod-{number}")
        seconds.append(time.monotonic() - began)
        (address,) = namespace.addresses(f"pod-{number}")
        outside.connects_soon(address, HTTP)
    print(f"[kubectl apply to Ready: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s]")
