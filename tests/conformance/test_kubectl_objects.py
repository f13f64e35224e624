"""kubectl on objects: get, describe, create, apply, patch, edit, label, delete."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.conftest import Kubectl, config_map, network_policy, pod, until


def test_get_prints_the_tables_of_a_real_server(kubectl: Kubectl) -> None:
    kubectl.apply(pod())
    header, row = kubectl("get", "pods").splitlines()
    assert header.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row.split()[:4] == ["web", "0/1", "Pending", "0"]
    wide = kubectl("get", "pods", "-o", "wide").splitlines()[0]
    assert wide.split("  ")[-1].strip() == "READINESS GATES"
    assert kubectl("get", "pods", "--show-labels").splitlines()[1].endswith("app=web")
    assert kubectl("get", "pods", "-L", "app").splitlines()[0].endswith("APP")


def test_get_in_other_forms(kubectl: Kubectl) -> None:
    kubectl.apply(pod())
    assert kubectl("get", "pods", "-o", "name") == "pod/web\n"
    assert kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.name}") == "web"
    assert "\nkind: Pod\n" in kubectl("get", "pod", "web", "-o", "yaml")
    assert kubectl("get", "pods", "-o", "custom-columns=N:.metadata.name", "--no-headers") == "web\n"
    everywhere = kubectl("get", "pods", "-A", "--no-headers")
    assert [kubectl.namespace, "web"] in [line.split()[:2] for line in everywhere.splitlines()]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=a", ["a"]),
        ("app==a", ["a"]),
        ("app!=a", ["b", "c"]),
        ("app in (a,b)", ["a", "b"]),
        ("app notin (a,b)", ["c"]),
        ("app", ["a", "b", "c"]),
        ("!app", []),
        ("app,tier=x", ["c"]),
    ],
)
def test_label_selectors(kubectl: Kubectl, selector: str, names: list[str]) -> None:
    kubectl.apply(*[pod(name) for name in "abc"])
    kubectl("label", "pod", "c", "tier=x")
    found = kubectl("get", "pods", "-l", selector, "-o", "name").split()
    assert found == [f"pod/{name}" for name in names]


def test_field_selectors(kubectl: Kubectl) -> None:
    kubectl.apply(pod("a"), pod("b", nodeName="conformance-node"))

    def names(selector: str) -> list[str]:
        return kubectl("get", "pods", "--field-selector", selector, "-o", "name").split()

    assert names("spec.nodeName=conformance-node") == ["pod/b"]
    assert names("metadata.name!=b") == ["pod/a"]
    assert names("status.phase=Pending,spec.nodeName=") == ["pod/a"]
    assert "field label not supported: spec.bogus" in kubectl.fails(
        "get", "pods", "--field-selector", "spec.bogus=1"
    )


def test_describe(kubectl: Kubectl) -> None:
    kubectl.apply(pod(), network_policy(ingress=[{"ports": [{"port": 80, "protocol": "UDP"}]}]))
    described = kubectl("describe", "pod", "web")
    assert "Port:         80/TCP" in described
    assert re.search(r"QoS Class: +BestEffort", described)
    assert "To Port: 80/UDP" in kubectl("describe", "networkpolicy", "allow")


def test_a_new_pod_has_the_defaults(kubectl: Kubectl) -> None:
    kubectl.apply(pod())
    found = kubectl.get("pod", "web")
    assert found["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert found["spec"]["restartPolicy"] == "Always"
    assert found["spec"]["terminationGracePeriodSeconds"] == 30
    assert found["spec"]["serviceAccountName"] == "default"
    container = found["spec"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 80, "protocol": "TCP"}]
    assert container["imagePullPolicy"] == "IfNotPresent"


def test_a_network_policy_has_the_defaults(kubectl: Kubectl) -> None:
    kubectl.apply(network_policy("in"), network_policy("both", egress=[{"ports": [{"port": 53}]}]))
    assert kubectl.get("networkpolicy", "in")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    both = kubectl.get("networkpolicy", "both")["spec"]
    assert both["policyTypes"] == ["Ingress", "Egress"]
    assert both["egress"] == [{"ports": [{"port": 53, "protocol": "TCP"}]}]


def test_imperative_creation(kubectl: Kubectl) -> None:
    """kubectl sends these as protobuf."""
    kubectl("create", "configmap", "c", "--from-literal=a=b")
    assert kubectl.get("configmap", "c")["data"] == {"a": "b"}
    kubectl("create", "secret", "generic", "s", "--from-literal=a=b")
    assert kubectl.get("secret", "s")["data"] == {"a": "Yg=="}
    kubectl("create", "serviceaccount", "someone")
    kubectl("create", "service", "clusterip", "svc", "--tcp=80:http")
    port = kubectl.get("service", "svc")["spec"]["ports"][0]
    assert port == {"name": "80-http", "port": 80, "protocol": "TCP", "targetPort": "http"}
    kubectl("run", "runner", "--image=registry.example/x", "--port=8080")
    assert kubectl("get", "pods", "-o", "name") == "pod/runner\n"


def test_services_get_addresses_of_their_own(kubectl: Kubectl) -> None:
    kubectl("create", "service", "clusterip", "a", "--tcp=80")
    kubectl("create", "service", "nodeport", "b", "--tcp=80")
    kubectl("create", "service", "clusterip", "headless", "--clusterip=None")
    a, b = (kubectl.get("service", name)["spec"] for name in "ab")
    assert a["clusterIPs"] == [a["clusterIP"]] != b["clusterIPs"]
    assert a["ipFamilyPolicy"] == "SingleStack"
    assert 30000 <= b["ports"][0]["nodePort"] <= 32767
    assert kubectl.get("service", "headless")["spec"]["clusterIP"] == "None"
    assert "may not change once set" in kubectl.fails(
        "patch", "service", "a", "-p", '{"spec":{"clusterIP":"10.96.200.200"}}'
    )


def test_client_side_apply(kubectl: Kubectl) -> None:
    assert kubectl.apply(config_map(a="1", b="2")).strip() == "configmap/settings created"
    assert kubectl.apply(config_map(a="1", b="2")).strip() == "configmap/settings unchanged"
    before = kubectl.get("configmap", "settings")["metadata"]["resourceVersion"]
    kubectl("patch", "configmap", "settings", "--type=merge", "-p", '{"data":{"mine":"kept"}}')
    assert kubectl.apply(config_map(a="3")).strip() == "configmap/settings configured"
    found = kubectl.get("configmap", "settings")
    assert found["data"] == {"a": "3", "mine": "kept"}
    assert int(found["metadata"]["resourceVersion"]) > int(before)


def test_server_side_apply_owns_fields_and_reports_conflicts(kubectl: Kubectl) -> None:
    def apply(manager: str, *args: str, **data: str) -> subprocess.CompletedProcess[str]:
        flags = ("apply", "--server-side", f"--field-manager={manager}", *args, "-f", "-")
        return kubectl.run(*flags, stdin=config_map(**data))

    assert apply("one", a="1", b="1").returncode == 0
    assert apply("two", b="1", c="1").returncode == 0  # the same value: shared
    refused = apply("two", a="2", c="1")
    assert 'conflict with "one": .data.a' in refused.stderr
    assert apply("two", "--force-conflicts", a="2", c="1").returncode == 0
    assert kubectl.get("configmap", "settings")["data"] == {"a": "2", "b": "1", "c": "1"}
    assert apply("one", "--force-conflicts", d="1").returncode == 0
    # one gave up b, which two gave up before: gone; a belongs to two.
    assert kubectl.get("configmap", "settings")["data"] == {"a": "2", "c": "1", "d": "1"}


def test_moving_from_client_side_to_server_side_apply(kubectl: Kubectl) -> None:
    kubectl.apply(config_map(a="1"))
    kubectl.apply(config_map(a="2"), args=("--server-side",))
    assert kubectl.get("configmap", "settings")["data"] == {"a": "2"}
    kubectl("label", "configmap", "settings", "x=y")
    kubectl.apply(config_map(b="3"), args=("--server-side",))
    found = kubectl.get("configmap", "settings")
    assert found["data"] == {"b": "3"}
    assert found["metadata"]["labels"] == {"x": "y"}


def test_server_side_apply_merges_keyed_lists(kubectl: Kubectl) -> None:
    def service(*ports: dict[str, object]) -> dict[str, object]:
        metadata = {"name": "s"}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": list(ports)}}

    for manager, port in (("one", {"name": "a", "port": 80}), ("two", {"name": "b", "port": 81})):
        kubectl.apply(service(port), args=("--server-side", f"--field-manager={manager}"))
    assert [p["port"] for p in kubectl.get("service", "s")["spec"]["ports"]] == [80, 81]
    kubectl.apply(service({"name": "c", "port": 82}), args=("--server-side", "--field-manager=one"))
    assert {p["port"] for p in kubectl.get("service", "s")["spec"]["ports"]} == {81, 82}


@pytest.mark.parametrize(
    ("kind", "patch", "value"),
    [
        ("json", '[{"op":"add","path":"/data/b","value":"2"},{"op":"remove","path":"/data/a"}]', {"b": "2"}),
        ("merge", '{"data":{"a":null,"b":"2"}}', {"b": "2"}),
        ("strategic", '{"data":{"b":"2"}}', {"a": "1", "b": "2"}),
    ],
)
def test_patch(kubectl: Kubectl, kind: str, patch: str, value: dict[str, str]) -> None:
    kubectl.apply(config_map(a="1"))
    kubectl("patch", "configmap", "settings", f"--type={kind}", "-p", patch)
    assert kubectl.get("configmap", "settings")["data"] == value


@pytest.mark.usefixtures("modern")
def test_strategic_patch_merges_lists_by_key(kubectl: Kubectl) -> None:
    kubectl.apply(pod(nodeName="conformance-node"))
    for kind, status in [("Ready", "False"), ("Ready", "True"), ("X", "True")]:
        condition = f'{{"status":{{"conditions":[{{"type":"{kind}","status":"{status}"}}]}}}}'
        kubectl("patch", "pod", "web", "--subresource=status", "-p", condition)
    conditions = kubectl.get("pod", "web")["status"]["conditions"]
    assert {"Ready": "True", "X": "True"}.items() <= {c["type"]: c["status"] for c in conditions}.items()


def test_waiting_for_a_condition(kubectl: Kubectl) -> None:
    kubectl.apply(pod(nodeName="conformance-node"))
    with kubectl.started("wait", "--for=condition=Ready", "pod/web", "--timeout=10s") as wait:
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        kubectl.set_status("/api/v1", "pods", "web", status=status)
        assert wait.communicate()[0] == "pod/web condition met\n"


def test_failing_json_patch(kubectl: Kubectl) -> None:
    kubectl.apply(config_map(a="1"))
    patch = '[{"op":"test","path":"/data/a","value":"9"},{"op":"remove","path":"/data/a"}]'
    kubectl.fails("patch", "configmap", "settings", "--type=json", "-p", patch)
    assert kubectl.get("configmap", "settings")["data"] == {"a": "1"}


def test_edit_and_replace(kubectl: Kubectl, tmp_path: Path) -> None:
    kubectl.apply(config_map(a="before"))
    kubectl("edit", "configmap", "settings", KUBE_EDITOR="sed -i s/before/after/g")
    assert kubectl.get("configmap", "settings")["data"] == {"a": "after"}
    stale = kubectl.get("configmap", "settings")
    kubectl("label", "configmap", "settings", "x=y")
    refused = kubectl.fails("replace", "-f", "-", stdin=stale)
    assert "the object has been modified; please apply your changes to the latest version" in refused
    kubectl("replace", "-f", "-", stdin=config_map(c="new"))
    assert kubectl.get("configmap", "settings")["data"] == {"c": "new"}


def test_labels_and_annotations(kubectl: Kubectl) -> None:
    kubectl.apply(config_map())
    kubectl("label", "configmap", "settings", "a=1")
    kubectl("annotate", "configmap", "settings", "note=hello world")
    version = kubectl.get("configmap", "settings")["metadata"]["resourceVersion"]
    kubectl("label", "configmap", "settings", "a=1", "--overwrite")
    metadata = kubectl.get("configmap", "settings")["metadata"]
    assert metadata["resourceVersion"] == version
    assert metadata["labels"] == {"a": "1"}
    assert metadata["annotations"]["note"] == "hello world"
    kubectl("label", "configmap", "settings", "a-")
    assert "labels" not in kubectl.get("configmap", "settings")["metadata"]


def test_deletion_of_a_running_pod_waits_for_its_kubelet(kubectl: Kubectl) -> None:
    kubectl.apply(pod(nodeName="conformance-node"))
    with kubectl.started("delete", "pod", "web") as deletion:
        until(lambda: "deletionTimestamp" in kubectl.get("pod", "web")["metadata"])
        assert kubectl.get("pod", "web")["metadata"]["deletionGracePeriodSeconds"] == 30
        assert kubectl("get", "pod", "web", "--no-headers").split()[2] == "Terminating"
        assert deletion.poll() is None
        kubectl("delete", "pod", "web", "--grace-period=0", "--force", "--wait=false")
        assert deletion.wait(10) == 0
    assert "NotFound" in kubectl.fails("get", "pod", "web")


def test_deletion_of_an_unscheduled_pod_is_immediate(kubectl: Kubectl) -> None:
    kubectl.apply(pod())
    kubectl("delete", "pod", "web", "--timeout=5s")
    assert kubectl("get", "pods", "-o", "name") == ""


def test_finalizers_hold_an_object(kubectl: Kubectl) -> None:
    held = config_map(a="1")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    kubectl.apply(held)
    kubectl("delete", "configmap", "settings", "--wait=false")
    assert "deletionTimestamp" in kubectl.get("configmap", "settings")["metadata"]
    added = '{"metadata":{"finalizers":["example.com/hold","example.com/more"]}}'
    refused = kubectl.fails("patch", "configmap", "settings", "--type=merge", "-p", added)
    assert "no new finalizers can be added if the object is being deleted" in refused
    kubectl("patch", "configmap", "settings", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert "NotFound" in kubectl.fails("get", "configmap", "settings")


def test_deleting_a_collection(kubectl: Kubectl) -> None:
    kubectl.apply(config_map("a"), config_map("b"), config_map("c"))
    kubectl("label", "configmap", "a", "b", "gone=yes")
    kubectl("delete", "configmap", "-l", "gone=yes")
    names = kubectl("get", "configmaps", "-o", "name").split()
    assert "configmap/c" in names
    assert "configmap/a" not in names


def test_a_namespace_takes_its_objects_along(cluster: Kubectl, kubectl: Kubectl) -> None:
    kubectl.apply(pod("waiting"), pod("running", nodeName="conformance-node"), config_map())
    cluster("delete", "namespace", kubectl.namespace, "--wait=false")
    until(lambda: kubectl.run("get", "pod", "waiting").returncode != 0)
    kubectl("get", "configmap", "settings")  # pods go first
    assert cluster.get("namespace", kubectl.namespace)["status"]["phase"] == "Terminating"
    refused = kubectl.fails("create", "configmap", "late")
    assert (
        f"unable to create new content in namespace {kubectl.namespace} because it is being terminated" in refused
    )
    kubectl("delete", "pod", "running", "--grace-period=0", "--force", "--wait=false")
    until(lambda: cluster.run("get", "namespace", kubectl.namespace).returncode != 0)


def test_watching_tables(kubectl: Kubectl) -> None:
    kubectl.apply(pod("a"))
    with kubectl.started("get", "pods", "-w", "--no-headers", "-l", "app") as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().split()[0] == "a"
        kubectl.apply(pod("b"))
        assert watch.stdout.readline().split()[:3] == ["b", "0/1", "Pending"]
        kubectl.set_status("/api/v1", "pods", "b", status={"phase": "Running"})
        assert watch.stdout.readline().split()[:3] == ["b", "0/1", "Running"]


def test_dry_run_and_diff(kubectl: Kubectl) -> None:
    assert "created (server dry run)" in kubectl.apply(config_map(a="1"), args=("--dry-run=server",))
    assert "NotFound" in kubectl.fails("get", "configmap", "settings")
    kubectl.apply(config_map(a="1"))
    changed = kubectl.run("diff", "-f", "-", stdin=config_map(a="2"))
    assert changed.returncode == 1
    assert '-  a: "1"' in changed.stdout
    assert '+  a: "2"' in changed.stdout
    assert kubectl.run("diff", "-f", "-", stdin=config_map(a="1")).returncode == 0
    kubectl("delete", "configmap", "settings", "--dry-run=server")
    assert kubectl.get("configmap", "settings")["data"] == {"a": "1"}


def test_events_in_both_forms(kubectl: Kubectl) -> None:
    kubectl.apply(pod())
    uid = kubectl.get("pod", "web")["metadata"]["uid"]
    involved = {"kind": "Pod", "namespace": kubectl.namespace, "name": "web", "uid": uid, "apiVersion": "v1"}
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "web.1"}, "involvedObject": involved,
        "reason": "Started", "message": "hello", "type": "Normal", "count": 2,
        "source": {"component": "kubelet"}, "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:01:00Z",
    }  # fmt: skip
    kubectl("create", "-f", "-", stdin=event)
    modern = kubectl.get("events.v1.events.k8s.io", "web.1")
    assert modern["note"] == "hello"
    assert modern["regarding"]["name"] == "web"
    assert modern["deprecatedCount"] == 2
    assert "Started" in kubectl("describe", "pod", "web")
    assert kubectl("get", "events", "--no-headers").split()[1:4] == ["Normal", "Started", "pod/web"]


def test_cluster_commands(cluster: Kubectl) -> None:
    assert json.loads(cluster("version", "-o", "json"))["serverVersion"]["major"] == "1"
    resources = cluster("api-resources", "--no-headers")
    assert ["networkpolicies", "netpol", "networking.k8s.io/v1", "true", "NetworkPolicy"] in [
        line.split() for line in resources.splitlines()
    ]
    assert "networking.k8s.io/v1" in cluster("api-versions").split()
    assert cluster("auth", "can-i", "create", "pods") == "yes\n"


@pytest.mark.usefixtures("modern")
def test_explain(cluster: Kubectl) -> None:
    assert "ingress\t<[]NetworkPolicyIngressRule>" in cluster("explain", "networkpolicy.spec")
    assert "containerPort\t<integer> -required-" in cluster("explain", "pod.spec.containers.ports")


def test_a_second_server_on_a_taken_port_says_so(cluster: Kubectl, tmp_path: Path) -> None:
    server = cluster("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    if "127.0.0.1" not in server:
        pytest.skip("not the embedded server")
    address = server.rpartition("/")[2]
    command = [sys.executable, "-m", "lab.apiserver", "--state-dir", str(tmp_path), "--listen", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=30)
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr
