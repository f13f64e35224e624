"""CNI results: read from a previous plugin, extended with our interface, written for the caller's version.

Source: CNI 1.1.0, "ADD Success" and its predecessors. 0.3.x and 0.4.0 want ``version`` in each of ``ips``; 1.1.0
alone has mtu, socketPath and pciID of interfaces and the metrics of routes.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

_OF_1_1_0 = {
    "interfaces": {"mtu", "socketPath", "pciID"},
    "routes": {"mtu", "advmss", "priority", "table", "scope"},
}


class Interface(msgspec.Struct, omit_defaults=True, rename="camel"):
    """An interface; ``sandbox`` is empty for one on the host."""

    name: str = ""
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = msgspec.field(default="", name="pciID")


class IPConfig(msgspec.Struct, omit_defaults=True):
    """An address with its prefix length; ``interface`` is an index into the interfaces."""

    address: str
    gateway: str = ""
    interface: int | None = None
    version: str = ""


class RouteConfig(msgspec.Struct, omit_defaults=True):
    """A route inside the container."""

    dst: str
    gw: str = ""
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class DNS(msgspec.Struct, omit_defaults=True):
    """Content for resolv.conf."""

    nameservers: list[str] = []
    domain: str = ""
    search: list[str] = []
    options: list[str] = []


class Result(msgspec.Struct, omit_defaults=True):
    """The result of an ADD: ours, a previous plugin's or (abbreviated) an IPAM plugin's."""

    interfaces: list[Interface] = []
    ips: list[IPConfig] = []
    routes: list[RouteConfig] = []
    dns: DNS = msgspec.field(default_factory=DNS)

    def encode(self, version: str) -> bytes:
        """The JSON of CNI ``version``."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        if version != "1.1.0":
            for part, fields in _OF_1_1_0.items():
                for entry in plain.get(part, ()):
                    for field in fields & entry.keys():
                        del entry[field]
        for entry in plain.get("ips", ()):
            entry.pop("version", None)
            if version.startswith("0."):
                entry["version"] = str(ipaddress.ip_interface(entry["address"]).version)
        return msgspec.json.encode({"cniVersion": version, "dns": {}} | plain)
