"""The stand-ins for scheduler and kubelet treat pods as the real ones do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lab.namespaces import inside
from lab.topology import TOR, WORLD
from tests.support.lab import LabUnderTest, manifest, one_backend
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e, one_backend]


def pod(name: str, *, ports: list[dict[str, Any]] | None = None, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "busybox", "ports": ports or [{"containerPort": 80}]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "dev", "name": name},
        "spec": {"containers": [container], **spec},
    }


@pytest.fixture
def create(lab: LabUnderTest) -> Iterator[Any]:
    """Create pods in dev; they are removed after the test."""
    names: list[str] = []

    def make(*pods: dict[str, Any]) -> None:
        names.extend(one["metadata"]["name"] for one in pods)
        lab.kubectl("apply", "-f", "-", stdin=manifest(*pods))

    yield make
    lab.kubectl("delete", "pod", "-n", "dev", "--ignore-not-found", *names)


def running(lab: LabUnderTest, name: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        (one,) = lab.get("pods", namespace="dev", fields=f"metadata.name={name}")["items"]
        return one if one.get("status", {}).get("phase") == "Running" else None

    answer = eventually(found, 20)
    assert answer is not None
    return answer


def greeting(lab: LabUnderTest, machine: str, address: str, port: int) -> str:
    """What a TCP server says first."""
    with inside(lab.netns(machine)):
        connection = socket.create_connection((address, port), timeout=3)
    with connection:
        return connection.recv(200).decode()


@pytest.mark.parametrize("how", [[], ["--force", "--grace-period=0"]], ids=["graceful", "forced"])
def test_deleted_pod_leaves_nothing(lab: LabUnderTest, create: Any, how: list[str]) -> None:
    create(pod("gone"))
    found = running(lab, "gone")
    addresses = [entry["ip"] for entry in found["status"]["podIPs"]]
    assert len(addresses) == len(lab.families)
    netns = lab.lab.pod_netns("dev/gone")
    node = found["spec"]["nodeName"]
    routed = [line for line in lab.routes(node) if line.split()[0] in addresses]
    assert len(routed) == len(addresses)
    lab.kubectl("delete", "pod", "-n", "dev", "gone", *how)
    eventually(lambda: not netns.exists())
    assert not [line for line in lab.routes(node) if line.split()[0] in addresses]
    assert not [line for line in lab.sets(node) for address in addresses if f" {address} " in f"{line} "]


def test_finished_pod_is_disconnected_and_its_object_stays(lab: LabUnderTest, create: Any) -> None:
    create(pod("done"))
    running(lab, "done")
    netns = lab.lab.pod_netns("dev/done")
    status = '{"status": {"phase": "Succeeded"}}'
    lab.kubectl("patch", "pod", "-n", "dev", "done", "--subresource=status", "--type=merge", "-p", status)
    eventually(lambda: not netns.exists())
    assert lab.get("pods", "done", "dev")["status"]["phase"] == "Succeeded"


def test_host_network_pod_has_its_nodes_addresses(lab: LabUnderTest, create: Any) -> None:
    create(pod("host", ports=[{"containerPort": 8088}], hostNetwork=True, nodeName="node2"))
    found = running(lab, "host")
    assert {entry["ip"] for entry in found["status"]["podIPs"]} == set(lab.nodes[1].addresses.values())
    for address in lab.nodes[1].addresses.values():
        assert greeting(lab, "node1", address, 8088) == "dev/host\n"


def test_host_port_reaches_the_pod_from_outside(lab: LabUnderTest, create: Any) -> None:
    """By the chained portmap plugin, with the node's own iptables backend."""
    create(pod("mapped", ports=[{"containerPort": 80, "hostPort": 8089}], nodeName="node1"))
    running(lab, "mapped")
    address = next(iter(lab.nodes[0].addresses.values()))
    assert greeting(lab, TOR, address, 8089) == "dev/mapped\n"


def test_node_selector_and_cordon_are_honoured(lab: LabUnderTest, create: Any) -> None:
    create(
        pod("chosen", nodeSelector={"kubernetes.io/hostname": "node2"}), pod("never", nodeSelector={"no": "such"})
    )
    assert running(lab, "chosen")["spec"]["nodeName"] == "node2"
    fields = "involvedObject.name=never,reason=FailedScheduling"
    eventually(lambda: lab.get("events", namespace="dev", fields=fields)["items"], 10)
    lab.kubectl("cordon", "node1")
    try:
        create(*(pod(f"kept-{number}") for number in range(3)))
        assert {running(lab, f"kept-{number}")["spec"]["nodeName"] for number in range(3)} == {"node2"}
    finally:
        lab.kubectl("uncordon", "node1")
    lab.kubectl("label", "node", "node1", "no=such")
    try:
        assert running(lab, "never")["spec"]["nodeName"] == "node1"
    finally:
        lab.kubectl("label", "node", "node1", "no-")


def test_many_pods_at_once(lab: LabUnderTest, create: Any) -> None:
    pods = [pod(f"many-{number}") for number in range(20)]
    create(*pods)
    addresses = [
        entry["ip"] for one in pods for entry in running(lab, one["metadata"]["name"])["status"]["podIPs"]
    ]
    assert len(set(addresses)) == len(pods) * len(lab.families)
    lab.settle()


def test_pod_answers_http(lab: LabUnderTest) -> None:
    """On port 80 and on its own: who answers, where, and who asked; other clients hear its name as before."""
    for family, address in lab.addresses("shop", "db-1").items():
        host = f"[{address}]" if ":" in address else address
        asker = lab.addresses("shop", "api-1")[family]
        for port in (80, 5432):
            told = lab.sh("shop/api-1", "curl", "-sS", "-m", "10", f"http://{host}:{port}/a?b")
            assert told.startswith(f"shop/db-1 answers at {host}:{port}, asked by shop/api-1 from ")
            assert asker in told
            assert told.endswith(": GET /a?b\n")
    told = lab.sh(TOR, "curl", "-sS", "-m", "10", "-d", "x" * 100_000, f"http://{host}/")
    assert ": POST /" in told
    assert "200 OK" in lab.sh("node1", "curl", "-sSI", "-m", "10", f"http://{host}/")
    world = next(iter(WORLD["world-a"].values()))
    told = lab.sh("shop/api-1", "curl", "-sS", "-m", "10", f"http://{world}/")
    assert told.startswith(f"world-a answers at {world}:80, asked by ")


@pytest.mark.parametrize("said", [b"hello\n", b"GO AWAY\n", b"GET", b"\0\1\n"])
def test_what_is_no_http_is_echoed(lab: LabUnderTest, said: bytes) -> None:
    (address, *_) = lab.addresses("shop", "web-1").values()
    with inside(lab.netns(TOR)):
        connection = socket.create_connection((address, 80), timeout=10)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        assert answer.read() == b"shop/web-1\n" + said


def test_ping_works(lab: LabUnderTest) -> None:
    for address in (*lab.addresses("shop", "web-2").values(), *WORLD["world-a"].values()):
        assert " 0% packet loss" in lab.sh("shop/web-1", "ping", "-c", "2", "-i", "0.2", "-W", "5", address)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["create", "deployment", "web", "--image=nginx"],
            "nothing in this lab acts on deployments. It has nodes",
        ),
        (["expose", "pod", "-n", "shop", "web-1", "--port=80"], "acts on services. There is no kube-proxy"),
        (["create", "service", "clusterip", "s", "--tcp=80"], "acts on services. There is no kube-proxy"),
        (["create", "job", "j", "--image=i"], "nothing in this lab acts on jobs. It has nodes"),
        (["create", "cronjob", "j", "--image=i", "--schedule=@daily"], "nothing in this lab acts on cronjobs."),
        (["create", "ingress", "i", "--rule=a.b/c=s:80"], "nothing in this lab acts on ingresses."),
        (["create", "role", "r", "--verb=get", "--resource=pods"], "nothing in this lab acts on roles."),
        (["create", "priorityclass", "p"], "this lab does not have priorityclasses.scheduling.k8s.io"),
        (["logs", "-n", "shop", "web-1"], "`felix-py lab exec shop/web-1 -- COMMAND`"),
        (["exec", "-n", "shop", "web-1", "--", "ls"], "`felix-py lab exec shop/web-1 -- COMMAND`"),
        (["attach", "-n", "shop", "web-1"], "`felix-py lab exec shop/web-1 -- COMMAND`"),
        (["port-forward", "-n", "shop", "pod/web-1", "18080:80"], "`felix-py lab exec shop/web-1 -- COMMAND`"),
        (["cp", "/etc/hostname", "shop/web-1:/x"], "`felix-py lab exec shop/web-1 -- COMMAND`"),
        (["debug", "-n", "shop", "web-1", "--image=i"], "`felix-py lab exec shop/web-1 -- COMMAND`"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_would_never_happen_is_refused_with_what_there_is(
    lab: LabUnderTest, argv: list[str], words: str
) -> None:
    said = lab.refused(*argv)
    assert words in said
    assert "panic" not in said


def test_manifest_of_a_deployment_is_refused(lab: LabUnderTest) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    head = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}}
    for how in (["apply"], ["apply", "--server-side"], ["create"]):
        said = lab.refused(*how, "-f", "-", stdin=manifest({**head, "spec": spec}))
        assert "nothing in this lab acts on deployments" in said
    assert "No resources found" in lab.lab.kubectl("get", "deployments,jobs,statefulsets", "-A").stderr


def test_node_is_described_with_numbers_that_make_sense(lab: LabUnderTest) -> None:
    said = lab.kubectl("describe", "node", "node1")
    assert "(0%)" in said
    assert "-9223372036854775808" not in said


def test_pod_echoes_what_it_is_told(lab: LabUnderTest) -> None:
    """The protocol that people and tests rely on: the name, then an echo."""
    (address, *_) = lab.addresses("shop", "web-1").values()
    with inside(lab.netns(TOR)):
        connection = socket.create_connection((address, 80), timeout=3)
    with connection, connection.makefile("rb") as answer:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert answer.read() == b"shop/web-1\nhello"


def test_a_static_pod_starts(lab: LabUnderTest, create: Any) -> None:
    """Its mirror in the API has another uid than the one that the runtime starts it under."""
    mirror = pod("static-n1", nodeName=lab.node_names[0])
    digest = "9e107d9d372bb6826bd81d3542a419d6"
    mirror["metadata"]["annotations"] = {f"kubernetes.io/config.{key}": digest for key in ("hash", "mirror")}
    create(mirror)
    assert running(lab, "static-n1")["metadata"]["uid"] != digest
