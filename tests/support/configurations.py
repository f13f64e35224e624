"""FelixConfigurations for tests."""

from __future__ import annotations

from typing import Any

from felix_py.records import ConfigurationRecord

EVERYTHING: dict[str, Any] = {
    "chainedPlugins": ["bandwidth"],
    "clusterCIDRs": ["10.0.0.0/8", "fd00::/16"],
    "serviceCIDRs": ["10.96.0.0/16"],
    "iptablesBackend": "NFT",
    "ipFamilies": ["ipv6", "ipv4"],
    "routeSource": "kubernetes",
    "bgpForeignAnnotations": True,
    "natOutgoing": False,
    "defaultEndpointToHostAction": "Drop",
    "dropInvalid": False,
    "revokeEstablished": False,
    "announcePodIPs": True,
    "mtu": 1400,
    "refreshIntervalSeconds": 30,
    "cniTimeoutSeconds": 5,
    "addressCooldownSeconds": 300,
    "strictAffinity": False,
    "discoveryIntervalSeconds": 60,
    "denyLog": False,
    "denyLogGroup": 7,
    "denyLogRate": 1000,
    "denyLogLines": False,
    "logSeverityScreen": "Debug",
}
"""Every field, with another value than the built-in one."""


def record(name: str, problem: str = "", **spec: Any) -> ConfigurationRecord:
    """An object as the informer makes it."""
    return ConfigurationRecord(name, f"uid-{name}", spec, problem)


def fine(_name: str, _value: Any) -> str:
    """A node that can use every value."""
    return ""
