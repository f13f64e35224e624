"""What the server fills in: the defaulting functions of the API groups, for the kinds the lab serves.

Each function works in place. Where a real server's admission plugins fill in (the default ServiceAccount, the
not-ready tolerations, pod priority), so do these.
"""

from __future__ import annotations

import base64
from typing import Any

from lab.apiserver.kinds import Obj

_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def _fill(obj: Obj, **values: Any) -> None:
    for name, value in values.items():
        if obj.get(name) in (None, ""):
            obj[name] = value


def network_policy(obj: Obj) -> None:
    """networking/v1: policyTypes and the protocol of each port."""
    spec = obj.setdefault("spec", {})
    spec.setdefault("podSelector", {})
    for rule in [*(spec.get("ingress") or []), *(spec.get("egress") or [])]:
        for port in rule.get("ports") or []:
            _fill(port, protocol="TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def namespace(obj: Obj) -> None:
    """core/v1: the finalizer that makes deletion remove the content, phase, and the name label."""
    obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
    _fill(obj.setdefault("status", {}), phase="Active")
    obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]


def node(obj: Obj) -> None:
    """core/v1: empty spec and status are always there, all of the capacity is allocatable."""
    obj.setdefault("spec", {})
    status = obj.setdefault("status", {})
    if status.get("capacity"):
        status.setdefault("allocatable", dict(status["capacity"]))


def secret(obj: Obj) -> None:
    """core/v1: type, and stringData becomes data."""
    _fill(obj, type="Opaque")
    plain = obj.pop("stringData", None) or {}
    if plain:
        coded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
        obj["data"] = (obj.get("data") or {}) | coded


def endpoint_slice(obj: Obj) -> None:
    """discovery/v1: port name and protocol; the lists are always there."""
    obj.setdefault("endpoints", [])
    obj.setdefault("ports", [])
    for port in obj["ports"]:
        port.setdefault("name", "")
        _fill(port, protocol="TCP")


def endpoints(obj: Obj) -> None:
    """core/v1: the protocol of each port."""
    for subset in obj.get("subsets") or []:
        for port in subset.get("ports") or []:
            _fill(port, protocol="TCP")


def event(obj: Obj) -> None:
    """core/v1: fields that are always in the serialised form."""
    obj.setdefault("source", {})
    for name in ("firstTimestamp", "lastTimestamp", "eventTime"):
        obj.setdefault(name, None)
    for name in ("reportingComponent", "reportingInstance"):
        obj.setdefault(name, "")


def pod(obj: Obj) -> None:
    """core/v1 defaults and admission; status starts as Pending."""
    pod_spec(obj.setdefault("spec", {}))
    spec = obj["spec"]
    _fill(spec, serviceAccountName=spec.get("serviceAccount", "default"))
    spec["serviceAccount"] = spec["serviceAccountName"]
    _fill(spec, priority=0, preemptionPolicy="PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(t.get("key") in (key, None, "") and t.get("effect") in ("NoExecute", None, "")
                   for t in tolerations):  # fmt: skip
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )
    _fill(obj.setdefault("status", {}), phase="Pending", qosClass=_qos(spec))


def pod_template_owner(obj: Obj) -> None:
    """apps/v1 Deployment and DaemonSet: the template's pod, and the empty status."""
    spec = obj.setdefault("spec", {})
    pod_spec(spec.setdefault("template", {}).setdefault("spec", {}))
    _fill(spec, revisionHistoryLimit=10)
    if obj["kind"] == "Deployment":
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
        _fill(spec, replicas=1, progressDeadlineSeconds=600, strategy=rolling)
    else:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
        _fill(spec, updateStrategy=rolling)
    obj.setdefault("status", {})


def pod_spec(spec: Obj) -> None:
    """core/v1 PodSpec."""
    _fill(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        schedulerName="default-scheduler",
    )
    spec.setdefault("securityContext", {})
    spec.setdefault("enableServiceLinks", True)
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        _container(container, bool(spec.get("hostNetwork")))


def _container(container: Obj, host_network: bool) -> None:
    container.setdefault("resources", {})
    image = container.get("image", "")
    latest = ":" not in image.rpartition("/")[2] or image.endswith(":latest")
    _fill(
        container,
        imagePullPolicy="Always" if latest and "@" not in image else "IfNotPresent",
        terminationMessagePath="/dev/termination-log",
        terminationMessagePolicy="File",
    )
    for port in container.get("ports") or []:
        _fill(port, protocol="TCP")
        if host_network:
            port.setdefault("hostPort", port.get("containerPort"))
    for variable in container.get("env") or []:
        if "fieldRef" in (variable.get("valueFrom") or {}):
            _fill(variable["valueFrom"]["fieldRef"], apiVersion="v1")
    for name in _PROBES:
        if probe := container.get(name):
            _fill(probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
            if "httpGet" in probe:
                _fill(probe["httpGet"], path="/", scheme="HTTP")


def _qos(spec: Obj) -> str:
    resources = [c.get("resources") or {} for c in spec.get("containers") or []]
    if not any(r.get("limits") or r.get("requests") for r in resources):
        return "BestEffort"
    guaranteed = all(
        {"cpu", "memory"} <= (r.get("limits") or {}).keys()
        and all(r["limits"].get(name) == value for name, value in (r.get("requests") or {}).items())
        for r in resources
    )
    return "Guaranteed" if guaranteed else "Burstable"
