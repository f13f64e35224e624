"""The printer columns of built-in kinds, as a real server's ``kubectl get`` shows them.

Source: pkg/printers/internalversion/printers.go of Kubernetes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from lab.apiserver.kinds import Column, Obj

NONE = "<none>"
UNKNOWN = "<unknown>"


def human_duration(seconds: float) -> str:
    """Age as kubectl prints it: two units at most (apimachinery duration.HumanDuration)."""
    if seconds < -1:
        return "<invalid>"
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    minutes = whole // 60
    if minutes < 10:
        return f"{minutes}m{whole % 60}s" if whole % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    hours = whole // 3600
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 730:
        return f"{days}d"
    years = days // 365
    return f"{years}y{days % 365}d" if years < 8 and days % 365 else f"{years}y"


def since(timestamp: object) -> str:
    """Time since a metav1.Time, or ``<unknown>``."""
    if not isinstance(timestamp, str) or not timestamp:
        return UNKNOWN
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return UNKNOWN
    return human_duration((datetime.now(UTC) - then).total_seconds())


def labels_text(labels: dict[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((labels or {}).items())) or NONE


def selector_text(selector: Obj | None) -> str:
    """A LabelSelector as text (metav1.FormatLabelSelector)."""
    if not selector:
        return NONE
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for requirement in selector.get("matchExpressions") or []:
        key, values = requirement.get("key"), ",".join(sorted(requirement.get("values") or []))
        match requirement.get("operator"):
            case "In":
                parts.append(f"{key} in ({values})")
            case "NotIn":
                parts.append(f"{key} notin ({values})")
            case "Exists":
                parts.append(str(key))
            case "DoesNotExist":
                parts.append(f"!{key}")
    return ",".join(parts) or NONE


def _name(obj: Obj) -> object:
    return obj["metadata"]["name"]


def _age(obj: Obj) -> object:
    return since(obj["metadata"].get("creationTimestamp"))


NAME = Column("Name", _name, format="name")
AGE = Column("Age", _age)


def _spec(name: str, otherwise: Any = NONE) -> Any:
    return lambda obj: (obj.get("spec") or {}).get(name) or otherwise


def _container_counts(obj: Obj) -> tuple[int, int, int]:
    statuses = (obj.get("status") or {}).get("containerStatuses") or []
    ready = sum(bool(status.get("ready")) for status in statuses)
    restarts = sum(status.get("restartCount", 0) for status in statuses)
    return ready, len((obj.get("spec") or {}).get("containers") or []), restarts


def _pod_ready(obj: Obj) -> str:
    ready, total, _ = _container_counts(obj)
    return f"{ready}/{total}"


def _pod_status(obj: Obj) -> str:
    status = obj.get("status") or {}
    reason = str(status.get("reason") or status.get("phase") or "")
    for container in status.get("containerStatuses") or []:
        state = container.get("state") or {}
        terminated = state.get("terminated")
        if waiting := (state.get("waiting") or {}).get("reason"):
            reason = waiting
        elif terminated is not None:
            reason = terminated.get("reason") or f"ExitCode:{terminated.get('exitCode', 0)}"
    if obj["metadata"].get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return reason


def _pod_restarts(obj: Obj) -> str:
    statuses = (obj.get("status") or {}).get("containerStatuses") or []
    _, _, restarts = _container_counts(obj)
    ended = [((s.get("lastState") or {}).get("terminated") or {}).get("finishedAt") for s in statuses]
    last = max((time for time in ended if time), default=None)
    return f"{restarts} ({since(last)} ago)" if restarts and last else str(restarts)


def _gates(obj: Obj) -> str:
    gates = (obj.get("spec") or {}).get("readinessGates") or []
    conditions = (obj.get("status") or {}).get("conditions") or []
    true = {c.get("type") for c in conditions if c.get("status") == "True"}
    return f"{sum(g.get('conditionType') in true for g in gates)}/{len(gates)}" if gates else NONE


def _status(name: str) -> Any:
    return lambda obj: (obj.get("status") or {}).get(name) or NONE


POD = (
    NAME,
    Column("Ready", _pod_ready),
    Column("Status", _pod_status),
    Column("Restarts", _pod_restarts),
    AGE,
    Column("IP", _status("podIP"), priority=1),
    Column("Node", _spec("nodeName"), priority=1),
    Column("Nominated Node", _status("nominatedNodeName"), priority=1),
    Column("Readiness Gates", _gates, priority=1),
)


def _node_status(obj: Obj) -> str:
    conditions = {c.get("type"): c.get("status") for c in (obj.get("status") or {}).get("conditions") or []}
    words = (
        ["Ready" if conditions.get("Ready") == "True" else "NotReady"] if "Ready" in conditions else ["Unknown"]
    )
    if (obj.get("spec") or {}).get("unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _node_roles(obj: Obj) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    return ",".join(sorted(key.removeprefix(prefix) for key in labels if key.startswith(prefix))) or NONE


def _node_address(kind: str) -> Any:
    def cell(obj: Obj) -> str:
        addresses = (obj.get("status") or {}).get("addresses") or []
        return next((a.get("address", NONE) for a in addresses if a.get("type") == kind), NONE)

    return cell


def _node_info(name: str) -> Any:
    return lambda obj: ((obj.get("status") or {}).get("nodeInfo") or {}).get(name) or UNKNOWN


NODE = (
    NAME,
    Column("Status", _node_status),
    Column("Roles", _node_roles),
    AGE,
    Column("Version", lambda obj: ((obj.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", "")),
    Column("Internal-IP", _node_address("InternalIP"), priority=1),
    Column("External-IP", _node_address("ExternalIP"), priority=1),
    Column("OS-Image", _node_info("osImage"), priority=1),
    Column("Kernel-Version", _node_info("kernelVersion"), priority=1),
    Column("Container-Runtime", _node_info("containerRuntimeVersion"), priority=1),
)

NAMESPACE = (NAME, Column("Status", lambda obj: (obj.get("status") or {}).get("phase", "")), AGE)

NETWORK_POLICY = (
    NAME,
    Column("Pod-Selector", lambda obj: selector_text((obj.get("spec") or {}).get("podSelector"))),
    AGE,
)


def _external_ip(obj: Obj) -> str:
    spec = obj.get("spec") or {}
    addresses = list(spec.get("externalIPs") or [])
    if spec.get("type") == "LoadBalancer":
        ingress = ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        addresses = [i.get("ip") or i.get("hostname", "") for i in ingress] + addresses
        return ",".join(addresses) or "<pending>"
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName", ""))
    return ",".join(addresses) or NONE


def _service_ports(obj: Obj) -> str:
    parts = []
    for port in (obj.get("spec") or {}).get("ports") or []:
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        parts.append(f"{port.get('port')}{node_port}/{port.get('protocol', 'TCP')}")
    return ",".join(parts) or NONE


SERVICE = (
    NAME,
    Column("Type", _spec("type")),
    Column("Cluster-IP", _spec("clusterIP")),
    Column("External-IP", _external_ip),
    Column("Port(s)", _service_ports),
    AGE,
    Column("Selector", lambda obj: labels_text((obj.get("spec") or {}).get("selector")), priority=1),
)


def _limited(items: list[str], most: int) -> str:
    return ",".join(items[:most]) + (f" + {len(items) - most} more..." if len(items) > most else "") or NONE


def _endpoints(obj: Obj) -> str:
    pairs = [
        f"{address.get('ip')}:{port.get('port')}"
        for subset in obj.get("subsets") or []
        for address in subset.get("addresses") or []
        for port in subset.get("ports") or [{}]
    ]
    return _limited(pairs, 3)


ENDPOINTS = (NAME, Column("Endpoints", _endpoints), AGE)


def _slice_ports(obj: Obj) -> str:
    ports = [str(port["port"]) if port.get("port") else "*" for port in obj.get("ports") or []]
    return _limited(ports, 3) if ports else "<unset>"


def _slice_addresses(obj: Obj) -> str:
    found = [address for endpoint in obj.get("endpoints") or [] for address in endpoint.get("addresses") or []]
    return _limited(found, 3) if found else "<unset>"


ENDPOINT_SLICE = (
    NAME,
    Column("AddressType", lambda obj: obj.get("addressType", "")),
    Column("Ports", _slice_ports),
    Column("Endpoints", _slice_addresses),
    AGE,
)

CONFIG_MAP = (
    NAME,
    Column("Data", lambda obj: len(obj.get("data") or {}) + len(obj.get("binaryData") or {}), type="integer"),
    AGE,
)
SECRET = (
    NAME,
    Column("Type", lambda obj: obj.get("type", "")),
    Column("Data", lambda obj: len(obj.get("data") or {}), type="integer"),
    AGE,
)
SERVICE_ACCOUNT = (NAME, Column("Secrets", lambda obj: len(obj.get("secrets") or []), type="integer"), AGE)
LEASE = (NAME, Column("Holder", _spec("holderIdentity", "")), AGE)
CRD = (NAME, Column("Created At", lambda obj: obj["metadata"].get("creationTimestamp", "")))


def _event_last_seen(obj: Obj) -> str:
    seen = (obj.get("series") or {}).get("lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime")
    return since(seen or obj["metadata"].get("creationTimestamp"))


def _event_object(obj: Obj) -> str:
    involved = obj.get("involvedObject") or {}
    return f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"


def _event_source(obj: Obj) -> str:
    source = obj.get("source") or {}
    component = source.get("component") or obj.get("reportingComponent") or ""
    return ", ".join(part for part in (component, source.get("host")) if part)


EVENT = (
    Column("Last Seen", _event_last_seen),
    Column("Type", lambda obj: obj.get("type", "")),
    Column("Reason", lambda obj: obj.get("reason", "")),
    Column("Object", _event_object),
    Column("Subobject", lambda obj: (obj.get("involvedObject") or {}).get("fieldPath", ""), priority=1),
    Column("Source", _event_source, priority=1),
    Column("Message", lambda obj: str(obj.get("message", "")).strip()),
    Column("First Seen", lambda obj: since(obj.get("firstTimestamp") or obj.get("eventTime")), priority=1),
    Column("Count", lambda obj: (obj.get("series") or {}).get("count") or obj.get("count") or 1, priority=1),
    Column("Name", _name, format="name", priority=1),
)


def _number(part: str, name: str) -> Any:
    return lambda obj: (obj.get(part) or {}).get(name, 0)


DEPLOYMENT = (
    NAME,
    Column("Ready", lambda obj: f"{_number('status', 'readyReplicas')(obj)}/{_number('spec', 'replicas')(obj)}"),
    Column("Up-to-date", _number("status", "updatedReplicas"), type="integer"),
    Column("Available", _number("status", "availableReplicas"), type="integer"),
    AGE,
)
DAEMON_SET = (
    NAME,
    Column("Desired", _number("status", "desiredNumberScheduled"), type="integer"),
    Column("Current", _number("status", "currentNumberScheduled"), type="integer"),
    Column("Ready", _number("status", "numberReady"), type="integer"),
    Column("Up-to-date", _number("status", "updatedNumberScheduled"), type="integer"),
    Column("Available", _number("status", "numberAvailable"), type="integer"),
    AGE,
)
DEFAULT = (NAME, Column("Created At", lambda obj: obj["metadata"].get("creationTimestamp", "")))
