"""Validation of NetworkPolicy, EndpointSlice, Endpoints and Service.

Source: pkg/apis/networking/validation, pkg/apis/discovery/validation, pkg/apis/core/validation of Kubernetes.
"""

from __future__ import annotations

from lab.apiserver.errors import FieldError, duplicate, forbidden, invalid, not_supported, required
from lab.apiserver.kinds import Obj
from lab.apiserver.metadata import dns_label, validate_labels
from lab.apiserver.validate import cidr, immutable, ip, label_selector, port_name, port_number, protocol

_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")


def network_policy(obj: Obj, old: Obj | None) -> list[FieldError]:
    """networking/v1 NetworkPolicy."""
    spec = obj["spec"]
    errors = label_selector(spec["podSelector"], "spec.podSelector")
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or []):
            path = f"spec.{direction}[{index}]"
            for i, port in enumerate(rule.get("ports") or []):
                errors += _policy_port(port, f"{path}.ports[{i}]")
            for i, peer in enumerate(rule.get(peers) or []):
                errors += _policy_peer(peer, f"{path}.{peers}[{i}]")
    types = spec["policyTypes"]
    if len(types) > 2:
        return [*errors, invalid("spec.policyTypes", types, "may not specify more than two policyTypes")]
    for index, name in enumerate(types):
        if name not in {"Ingress", "Egress"}:
            errors.append(not_supported(f"spec.policyTypes[{index}]", name, ("Egress", "Ingress")))
    return errors


def _policy_port(port: Obj, path: str) -> list[FieldError]:
    errors = protocol(port["protocol"], f"{path}.protocol")
    number, end = port.get("port"), port.get("endPort")
    if isinstance(number, int):
        errors += [invalid(f"{path}.port", number, problem) for problem in port_number(number)]
        if end is not None:
            if end < number:
                errors.append(invalid(f"{path}.endPort", end, "must be greater than or equal to `port`"))
            errors += [invalid(f"{path}.endPort", end, problem) for problem in port_number(end)]
        return errors
    if end is not None:
        state = "not specified" if number is None else "non-numeric"
        errors.append(invalid(f"{path}.endPort", end, f"may not be specified when `port` is {state}"))
    if number is not None:
        errors += [invalid(f"{path}.port", number, problem) for problem in port_name(number)]
    return errors


def _policy_peer(peer: Obj, path: str) -> list[FieldError]:
    selectors = [name for name in ("podSelector", "namespaceSelector") if name in peer]
    errors = [error for name in selectors for error in label_selector(peer[name], f"{path}.{name}")]
    if "ipBlock" in peer:
        errors += _ip_block(peer["ipBlock"], f"{path}.ipBlock")
        if selectors:
            errors.append(forbidden(path, "may not specify both ipBlock and another peer"))
    elif not selectors:
        errors.append(required(path, "must specify a peer"))
    return errors


def _ip_block(block: Obj, path: str) -> list[FieldError]:
    if not block.get("cidr"):
        return [required(f"{path}.cidr")]
    errors, network = cidr(block["cidr"], f"{path}.cidr")
    for index, text in enumerate(block.get("except") or []):
        problems, inner = cidr(text, f"{path}.except[{index}]")
        errors += problems
        if network is None or inner is None:
            continue
        within = inner.version == network.version and inner.subnet_of(network) and inner != network
        if not within:
            errors.append(invalid(f"{path}.except[{index}]", text, "must be a strict subset of `cidr`"))
    return errors


def service(obj: Obj, old: Obj | None) -> list[FieldError]:
    """core/v1 Service, the parts people get wrong."""
    spec = obj["spec"]
    kind, cluster_ip = spec.get("type"), spec.get("clusterIP", "")
    errors = []
    if kind not in _SERVICE_TYPES:
        errors.append(not_supported("spec.type", kind, _SERVICE_TYPES))
    if not spec.get("ports") and cluster_ip != "None" and kind != "ExternalName":
        errors.append(required("spec.ports"))
    errors += _service_ports(spec.get("ports") or [])
    if spec.get("selector"):
        errors += validate_labels(spec["selector"], "spec.selector")
    if spec.get("sessionAffinity") not in {"None", "ClientIP"}:
        choices = ("ClientIP", "None")
        errors.append(not_supported("spec.sessionAffinity", spec.get("sessionAffinity"), choices))
    if kind == "ExternalName":
        if not spec.get("externalName"):
            errors.append(required("spec.externalName"))
        return errors
    for index, address in enumerate(spec.get("externalIPs") or []):
        errors += ip(address, f"spec.externalIPs[{index}]")
    for index, address in enumerate(spec.get("clusterIPs") or []):
        if address != "None":
            errors += ip(address, f"spec.clusterIPs[{index}]")
    before = old["spec"].get("clusterIP") if old is not None else None
    if before and cluster_ip != before:
        errors.append(invalid("spec.clusterIPs[0]", spec.get("clusterIPs"), "may not change once set"))
    return errors


def _service_ports(ports: list[Obj]) -> list[FieldError]:
    errors: list[FieldError] = []
    names, pairs = set(), set()
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        name, number = port.get("name", ""), port.get("port", 0)
        if name:
            errors += [invalid(f"{path}.name", name, problem) for problem in dns_label(name)]
        elif len(ports) > 1:
            errors.append(required(f"{path}.name"))
        if name in names:
            errors.append(duplicate(f"{path}.name", name))
        errors += [invalid(f"{path}.port", number, problem) for problem in port_number(number)]
        errors += protocol(port.get("protocol"), f"{path}.protocol")
        errors += target_port(port["targetPort"], f"{path}.targetPort")
        pair = (port.get("protocol"), number)
        if pair in pairs:
            errors.append(duplicate(path, {"port": number, "protocol": port.get("protocol")}))
        names.add(name)
        pairs.add(pair)
    return errors


def target_port(value: int | str, path: str) -> list[FieldError]:
    """A port number or the name of a container port."""
    problems = port_number(value) if isinstance(value, int) else port_name(value)
    return [invalid(path, value, problem) for problem in problems]


def endpoint_slice(obj: Obj, old: Obj | None) -> list[FieldError]:
    """discovery/v1 EndpointSlice."""
    kind = obj.get("addressType", "")
    errors = []
    if not kind:
        errors.append(required("addressType"))
    elif kind not in _ADDRESS_TYPES:
        errors.append(not_supported("addressType", kind, _ADDRESS_TYPES))
    if old is not None:
        errors += immutable(kind, old.get("addressType"), "addressType")
    for index, endpoint in enumerate(obj["endpoints"]):
        path = f"endpoints[{index}].addresses"
        addresses = endpoint.get("addresses") or []
        if not addresses:
            errors.append(required(path, "must contain at least 1 address"))
        if kind in {"IPv4", "IPv6"}:
            for i, address in enumerate(addresses):
                errors += ip(address, f"{path}[{i}]")
    names = [port["name"] for port in obj["ports"]]
    for index, port in enumerate(obj["ports"]):
        if port["name"] in names[:index]:
            errors.append(duplicate(f"ports[{index}].name", port["name"]))
        errors += protocol(port["protocol"], f"ports[{index}].protocol")
    return errors


def endpoints(obj: Obj, old: Obj | None) -> list[FieldError]:
    """core/v1 Endpoints."""
    errors = []
    for index, subset in enumerate(obj.get("subsets") or []):
        path = f"subsets[{index}]"
        addresses = subset.get("addresses") or []
        if not addresses and not subset.get("notReadyAddresses"):
            errors.append(required(path, "must specify `addresses` or `notReadyAddresses`"))
        for i, address in enumerate(addresses):
            errors += ip(address.get("ip", ""), f"{path}.addresses[{i}].ip")
        for i, port in enumerate(subset.get("ports") or []):
            errors += protocol(port.get("protocol"), f"{path}.ports[{i}].protocol")
            number = port.get("port", 0)
            errors += [invalid(f"{path}.ports[{i}].port", number, problem) for problem in port_number(number)]
    return errors
