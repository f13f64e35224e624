"""Service addresses: ClusterIPs from the service CIDRs and node ports, allocated from what the store holds."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from lab.apiserver import validate_networking
from lab.apiserver.errors import ApiError, FieldError, invalid
from lab.apiserver.kinds import Obj

_NODE_PORTS = range(30000, 32768)


class ServiceAllocator:
    """Defaults of core/v1 Service that need to know the other Services.

    ``cidrs``: at most one per family, the first is the primary. ``existing`` lists all Services.
    """

    def __init__(self, cidrs: Sequence[str], existing: Callable[[], Iterable[Obj]]) -> None:
        self._networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
        self._existing = existing
        self._next: dict[int, int] = {network.version: 10 for network in self._networks}

    @property
    def first_address(self) -> str:
        """The address of the ``kubernetes`` Service."""
        return str(self._networks[0][1])

    def default(self, obj: Obj) -> None:
        """Type, ports, addresses and node ports; in place."""
        spec = obj.setdefault("spec", {})
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            spec.setdefault("sessionAffinityConfig", {"clientIP": {"timeoutSeconds": 10800}})
        for port in spec.get("ports") or []:
            port["protocol"] = port.get("protocol") or "TCP"
            port.setdefault("port", 0)
            port.setdefault("targetPort", port["port"])
        obj.setdefault("status", {}).setdefault("loadBalancer", {})
        if spec["type"] == "ExternalName":
            return
        spec.setdefault("internalTrafficPolicy", "Cluster")
        if spec["type"] in {"NodePort", "LoadBalancer"}:
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if spec["type"] == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        self._addresses(spec)
        self._node_ports(obj)

    def keep(self, new: Obj, old: Obj | None) -> None:
        """An update that leaves out the addresses keeps them; ExternalName gives them back; in place."""
        if old is None:
            return
        spec, before = new.setdefault("spec", {}), old["spec"]
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if name not in before:
                continue
            if spec.get("type") != "ExternalName":
                spec.setdefault(name, before[name])
            elif spec.get(name) == before[name]:
                del spec[name]
        if spec.get("clusterIP") != before.get("clusterIP") and spec.get("clusterIPs") == before.get(
            "clusterIPs"
        ):
            spec["clusterIPs"] = [spec.get("clusterIP"), *before.get("clusterIPs", [])[1:]]
        if spec.get("type") in {"NodePort", "LoadBalancer"}:
            self._keep_node_ports(spec, before)

    @staticmethod
    def _keep_node_ports(spec: Obj, before: Obj) -> None:
        known = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in before.get("ports") or []}
        for port in spec.get("ports") or []:
            if node_port := known.get((port.get("protocol") or "TCP", port.get("port"))):
                port.setdefault("nodePort", node_port)

    def validate(self, obj: Obj, old: Obj | None) -> list[FieldError]:
        """The kind's own rules, and that asked-for addresses can be had."""
        errors = validate_networking.service(obj, old)
        if errors or (old is not None and old["spec"].get("clusterIPs")):
            return errors
        addresses = [address for address in obj["spec"].get("clusterIPs") or [] if address != "None"]
        uid = obj["metadata"].get("uid")
        taken = self._taken(lambda other: other["metadata"].get("uid") != uid)
        for address in addresses:
            network = next((n for n in self._networks if ipaddress.ip_address(address) in n), None)
            why = "the provided IP is already allocated" if address in taken else ""
            if network is None:
                ranges = ",".join(map(str, self._networks))
                why = f"the provided IP ({address}) is not in the valid range. The range of valid IPs is {ranges}"
            if why:
                errors.append(invalid("spec.clusterIPs", addresses, f"failed to allocate IP {address}: {why}"))
        return errors

    def _taken(self, among: Callable[[Obj], bool]) -> set[str]:
        services = (service for service in self._existing() if among(service))
        return {address for service in services for address in service["spec"].get("clusterIPs") or []}

    def _addresses(self, spec: Obj) -> None:
        given = spec.get("clusterIPs") or [ip for ip in (spec.get("clusterIP"),) if ip]
        families = self._families(spec, given)
        spec["clusterIPs"] = given or [self._free(family) for family in families]
        spec["clusterIP"] = spec["clusterIPs"][0]
        spec.setdefault("ipFamilies", [f"IPv{family}" for family in families])
        spec.setdefault("ipFamilyPolicy", "SingleStack")

    def _families(self, spec: Obj, given: Sequence[str]) -> list[int]:
        ours: list[int] = [network.version for network in self._networks]
        wanted = [6 if ":" in address else 4 for address in given if address != "None"]
        wanted = wanted or [int(name[-1]) for name in spec.get("ipFamilies") or [] if name in {"IPv4", "IPv6"}]
        wanted = [family for family in wanted if family in ours] or ours[:1]
        if spec.get("ipFamilyPolicy") in {"PreferDualStack", "RequireDualStack"}:
            wanted += [family for family in ours if family not in wanted]
        return wanted

    def _free(self, family: int) -> str:
        network = next(network for network in self._networks if network.version == family)
        used = self._taken(lambda service: True)
        size = min(network.num_addresses, 2**20) - 2
        for step in range(size):
            index = 1 + (self._next[family] + step) % size
            if (address := str(network[index])) not in used:
                self._next[family] = index
                return address
        raise ApiError(500, "InternalError", f"failed to allocate a serviceIP: range {network} is full")

    def _node_ports(self, obj: Obj) -> None:
        spec = obj["spec"]
        ports = spec.get("ports") or []
        if spec["type"] not in {"NodePort", "LoadBalancer"}:
            for port in ports:
                port.pop("nodePort", None)
            return
        used = {
            port.get("nodePort") for service in self._existing() for port in service["spec"].get("ports") or []
        }
        for port in ports:
            if not port.get("nodePort"):
                port["nodePort"] = next(number for number in _NODE_PORTS if number not in used)
                used.add(port["nodePort"])
