"""What tests put on a cluster, and how they see who reaches whom."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.images import AGNHOST
from tests.cluster.machine import wait_for
from tests.cluster.plan import url_host

HTTP = 8080
_CONNECT = 'for to in "$@"; do (/agnhost connect --timeout=3s "$to" >/dev/null 2>&1 && echo "$to") & done; wait'


def pod(
    name: str, labels: Mapping[str, str] | None = None, ports: Mapping[str, int] | None = None, **spec: Any
) -> dict[str, Any]:
    """A pod that serves HTTP on each of its named ports (default: ``http``, 8080); ``spec`` adds to its spec."""
    found = {
        # A pod that is deleted ends at once: nobody here has anything to finish.
        "terminationGracePeriodSeconds": 0,
        "containers": [_container(name, port) for name, port in (ports or {"http": HTTP}).items()],
        **spec,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": found,
    }


def _container(name: str, port: int) -> dict[str, Any]:
    return {
        "name": name,
        "image": AGNHOST,
        "imagePullPolicy": "Never",
        "args": ["netexec", f"--http-port={port}", f"--udp-port={port}"],
        "ports": [{"name": name, "containerPort": port}],
    }


def deployment(name: str, replicas: int) -> dict[str, Any]:
    """Pods labelled ``app=NAME``, spread over all nodes."""
    labels = {"app": name}
    found = pod(name, labels)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": labels},
    }
    template = {"metadata": found["metadata"], "spec": {**found["spec"], "topologySpreadConstraints": [spread]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def service(name: str, families: Sequence[int], kind: str = "ClusterIP") -> dict[str, Any]:
    """Port 80 of a Service for pods labelled ``app=NAME``, in all of the cluster's families."""
    spec = {
        "type": kind,
        "selector": {"app": name},
        "ports": [{"port": 80, "targetPort": "http"}],
        "ipFamilies": [f"IPv{family}" for family in families],
        "ipFamilyPolicy": "SingleStack" if len(families) == 1 else "RequireDualStack",
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def policy(name: str, **spec: Any) -> dict[str, Any]:
    """A NetworkPolicy; all pods of the namespace where ``spec`` names none."""
    head = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name}}
    return {**head, "spec": {"podSelector": {}, **spec}}


class Namespace:
    """A namespace of the cluster that a test has made."""

    def __init__(self, cluster: Cluster, labels: Mapping[str, str] | None = None) -> None:
        self.cluster = cluster
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        metadata = {"name": self.name, "labels": dict(labels or {})}
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        find = ["-n", self.name, "get", "serviceaccount", "default"]
        wait_for(f"{self.name}'s ServiceAccount", lambda: cluster.kubectl(*find), 30)

    def kubectl(self, *argv: str, timeout: float = 60, stdin: str | None = None) -> str:
        """kubectl in this namespace."""
        return self.cluster.kubectl("-n", self.name, *argv, timeout=timeout, stdin=stdin)

    def get(self, *argv: str) -> Any:
        """What ``kubectl get ARGV -o json`` says, decoded."""
        return json.loads(self.kubectl("get", *argv, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """``kubectl apply`` of these objects in this namespace."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def wait_ready(self, *pods: str, seconds: float = 120) -> None:
        """Until these pods are Ready; all, where none is named."""
        which = [f"pod/{name}" for name in pods] or ["pod", "--all"]
        self.kubectl("wait", "--for=condition=Ready", f"--timeout={seconds:.0f}s", *which, timeout=seconds + 10)

    def pods(self, *selector: str) -> dict[str, dict[str, Any]]:
        """Pods by name."""
        return {found["metadata"]["name"]: found for found in self.get("pods", *selector)["items"]}

    def addresses(self, pod: str) -> list[str]:
        """A pod's addresses, the primary family's first."""
        return [found["ip"] for found in self.get("pod", pod)["status"]["podIPs"]]

    def reaches(self, pod: str, targets: Collection[str], container: str = "http") -> set[str]:
        """Which ``HOST:PORT`` a pod can connect to within three seconds; all are tried at once."""
        argv = ["exec", pod, "-c", container, "--", "sh", "-c", _CONNECT, "sh", *targets]
        return set(self.kubectl(*argv).split())

    def delete(self, wait: bool = False) -> None:
        """Delete it with all that is in it; twice is fine."""
        argv = ["delete", "namespace", self.name, "--ignore-not-found", f"--wait={str(wait).lower()}"]
        self.cluster.kubectl(*argv, timeout=180)


def targets(addresses: Sequence[str], port: int = HTTP) -> set[str]:
    """``HOST:PORT`` of each address."""
    return {f"{url_host(found)}:{port}" for found in addresses}
