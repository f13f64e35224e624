"""Validation of Pod, Node, ConfigMap and Secret. Source: pkg/apis/core/validation of Kubernetes."""

from __future__ import annotations

import base64
import binascii
import re

from lab.apiserver.errors import FieldError, duplicate, forbidden, invalid, not_supported, required
from lab.apiserver.kinds import Obj
from lab.apiserver.metadata import dns_label, dns_subdomain, validate_labels
from lab.apiserver.validate import cidr, immutable, label_selector, port_name, port_number, protocol

_RESTART_POLICIES = ("Always", "Never", "OnFailure")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_MUTABLE_POD_SPEC = frozenset({"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds",
                               "schedulingGates", "nodeName", "ephemeralContainers"})  # fmt: skip


def pod(obj: Obj, old: Obj | None) -> list[FieldError]:
    """core/v1 Pod: create, and what an update may change."""
    errors = pod_spec(obj["spec"], "spec")
    if old is not None:
        errors += _pod_update(obj["spec"], old["spec"])
    return errors


def pod_spec(spec: Obj, path: str) -> list[FieldError]:
    """A PodSpec, also inside a template."""
    errors: list[FieldError] = []
    containers = spec.get("containers") or []
    if not containers:
        errors.append(required(f"{path}.containers"))
    named: set[str] = set()
    volumes = {volume.get("name", "") for volume in spec.get("volumes") or []}
    for field in ("initContainers", "containers"):
        ports: set[tuple[object, object]] = set()
        for index, container in enumerate(spec.get(field) or []):
            here = f"{path}.{field}[{index}]"
            errors += _container(container, here, named, volumes, ports)
    if spec.get("restartPolicy") not in _RESTART_POLICIES:
        errors.append(not_supported(f"{path}.restartPolicy", spec.get("restartPolicy"), _RESTART_POLICIES))
    if spec.get("nodeName"):
        name = spec["nodeName"]
        errors += [invalid(f"{path}.nodeName", name, problem) for problem in dns_subdomain(name)]
    errors += validate_labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")
    for index, volume in enumerate(spec.get("volumes") or []):
        here = f"{path}.volumes[{index}].name"
        name = volume.get("name", "")
        errors += [invalid(here, name, problem) for problem in dns_label(name)] if name else [required(here)]
    grace = spec.get("terminationGracePeriodSeconds", 0)
    if grace < 0:
        errors.append(
            invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than or equal to 0")
        )
    return errors


def _container(
    container: Obj, path: str, named: set[str], volumes: set[str], ports: set[tuple[object, object]]
) -> list[FieldError]:
    name = container.get("name", "")
    errors = [invalid(f"{path}.name", name, p) for p in dns_label(name)] if name else [required(f"{path}.name")]
    if name and name in named:
        errors.append(duplicate(f"{path}.name", name))
    named.add(name)
    image = container.get("image", "")
    if not image:
        errors.append(required(f"{path}.image"))
    elif image != image.strip():
        errors.append(invalid(f"{path}.image", image, "must not have leading or trailing whitespace"))
    if container.get("imagePullPolicy") not in _PULL_POLICIES:
        policy = container.get("imagePullPolicy")
        errors.append(not_supported(f"{path}.imagePullPolicy", policy, _PULL_POLICIES))
    errors += _container_ports(container.get("ports") or [], f"{path}.ports", ports)
    for index, variable in enumerate(container.get("env") or []):
        if not variable.get("name"):
            errors.append(required(f"{path}.env[{index}].name"))
    for index, mount in enumerate(container.get("volumeMounts") or []):
        if mount.get("name") not in volumes:
            errors.append(
                FieldError(f"{path}.volumeMounts[{index}].name", "FieldValueNotFound",
                           f'Not found: "{mount.get("name", "")}"')
            )  # fmt: skip
    return errors


def _container_ports(listed: list[Obj], path: str, host_ports: set[tuple[object, object]]) -> list[FieldError]:
    errors: list[FieldError] = []
    names: set[str] = set()
    for index, port in enumerate(listed):
        here = f"{path}[{index}]"
        if name := port.get("name", ""):
            errors += [invalid(f"{here}.name", name, problem) for problem in port_name(name)]
            if name in names:
                errors.append(duplicate(f"{here}.name", name))
            names.add(name)
        number = port.get("containerPort", 0)
        if number == 0:
            errors.append(required(f"{here}.containerPort"))
        else:
            errors += [invalid(f"{here}.containerPort", number, problem) for problem in port_number(number)]
        errors += protocol(port.get("protocol"), f"{here}.protocol")
        if host_port := port.get("hostPort"):
            errors += [invalid(f"{here}.hostPort", host_port, problem) for problem in port_number(host_port)]
            if (port.get("protocol"), host_port) in host_ports:
                errors.append(duplicate(f"{here}.hostPort", f"{port.get('protocol')}//{host_port}"))
            host_ports.add((port.get("protocol"), host_port))
    return errors


def _pod_update(spec: Obj, old: Obj) -> list[FieldError]:
    def fixed(from_spec: Obj) -> Obj:
        kept = {key: value for key, value in from_spec.items() if key not in _MUTABLE_POD_SPEC}
        for field in ("containers", "initContainers"):
            kept[field] = [{**c, "image": ""} for c in from_spec.get(field) or []]
        return kept

    errors = []
    if fixed(spec) != fixed(old):
        errors.append(
            forbidden(
                "spec",
                "pod updates may not change fields other than `spec.containers[*].image`,"
                "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,"
                "`spec.tolerations` (only additions to existing tolerations),"
                "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
            )
        )
    if old.get("nodeName") and spec.get("nodeName") != old["nodeName"]:
        errors += immutable(spec.get("nodeName"), old["nodeName"], "spec.nodeName")
    return errors


def pod_template_owner(obj: Obj, old: Obj | None) -> list[FieldError]:
    """apps/v1 Deployment and DaemonSet."""
    spec = obj["spec"]
    selector = spec.get("selector")
    if not selector:
        return [required("spec.selector")]
    errors = label_selector(selector, "spec.selector")
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        errors.append(
            invalid("spec.template.metadata.labels", labels, "`selector` does not match template `labels`")
        )
    if old is not None:
        errors += immutable(selector, old["spec"].get("selector"), "spec.selector")
    return errors + pod_spec(spec["template"]["spec"], "spec.template.spec")


def node(obj: Obj, old: Obj | None) -> list[FieldError]:
    """core/v1 Node: podCIDRs, one of each family at most, never changed once set."""
    spec = obj["spec"]
    cidrs = spec.get("podCIDRs") or []
    errors = []
    networks = []
    for index, text in enumerate(cidrs):
        problems, network = cidr(text, f"spec.podCIDRs[{index}]")
        errors += problems
        networks.append(network)
    if len(cidrs) > 2 or (len(cidrs) == 2 and all(networks) and networks[0].version == networks[1].version):
        errors.append(invalid("spec.podCIDRs", cidrs, "may specify no more than one CIDR for each IP family"))
    if old is not None and old["spec"].get("podCIDRs") and old["spec"]["podCIDRs"] != cidrs:
        errors.append(forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid'))
    return errors


def config_map(obj: Obj, old: Obj | None) -> list[FieldError]:
    """core/v1 ConfigMap."""
    errors = _keys(obj.get("data") or {}, "data") + _keys(obj.get("binaryData") or {}, "binaryData")
    return errors + _frozen(obj, old, ("data", "binaryData"))


def secret(obj: Obj, old: Obj | None) -> list[FieldError]:
    """core/v1 Secret."""
    data = obj.get("data") or {}
    errors = _keys(data, "data")
    for key, value in data.items():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            errors.append(invalid(f"data[{key}]", "<redacted>", "illegal base64 data"))
    if old is not None:
        errors += immutable(obj.get("type"), old.get("type"), "type")
    return errors + _frozen(obj, old, ("data",))


def _keys(data: Obj, path: str) -> list[FieldError]:
    why = (
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
        "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
    )
    return [
        invalid(f"{path}[{key}]", key, why) for key in data if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", key)
    ]


def _frozen(obj: Obj, old: Obj | None, fields: tuple[str, ...]) -> list[FieldError]:
    if old is None or not old.get("immutable"):
        return []
    why = "field is immutable when `immutable` is set"
    return [forbidden(name, why) for name in (*fields, "immutable") if obj.get(name) != old.get(name)]
