"""What a cluster is asked to be, and its addresses: all have the same, since each is in namespaces of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TOR, OUTSIDE, CONTROL_PLANE = "tor", "outside", "cp"
FAMILIES: Mapping[str, tuple[int, ...]] = {"ipv4": (4,), "ipv6": (6,), "dual": (4, 6)}
RACK = {4: "172.31.0.0/24", 6: "fd00:31::/64"}
"""The router's bridge, with the control plane and all nodes."""

BEYOND = {4: "172.31.1.0/24", 6: "fd00:31:1::/64"}
"""The network on the other side of the router."""

CLUSTER_CIDRS = {4: "10.244.0.0/16", 6: "fd00:10:244::/56"}
NODE_MASKS = {4: 24, 6: 64}
SERVICE_CIDRS = {4: "10.96.0.0/16", 6: "fd00:10:96::/112"}
LOAD_BALANCERS = {4: "172.31.9.0/28", 6: "fd00:31:9::/124"}
"""What IPPools for load balancers may have."""

API_SERVICE = {4: "10.96.0.1", 6: "fd00:10:96::1"}
DNS_SERVICE = {4: "10.96.0.10", 6: "fd00:10:96::a"}
TOR_ASN = 64500
NODE_ASN = 64512
"""Of all nodes: they share a rack, so each has to allow its own number in a path (docs/bgp.md)."""

_HOSTS = {TOR: 1, OUTSIDE: 2, CONTROL_PLANE: 10}
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


@dataclass(frozen=True)
class Shape:
    """A cluster to be. ``families`` has the primary one first; ``backend`` is the nodes' iptables."""

    nodes: int = 3
    families: tuple[int, ...] = (4,)
    backend: Literal["nft", "legacy"] = "nft"
    audit: bool = False

    @property
    def node_names(self) -> list[str]:
        """``node1`` and so on: also the names of the Node objects."""
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    @property
    def machines(self) -> list[str]:
        """All machines, in the order in which they start."""
        return [TOR, OUTSIDE, CONTROL_PLANE, *self.node_names]

    @property
    def family(self) -> str:
        """``ipv4``, ``ipv6`` or ``dual``."""
        return next(name for name, families in FAMILIES.items() if families == self.families)

    def of(self, table: Mapping[int, str]) -> list[str]:
        """What a table by family has for this cluster's families, the primary one first."""
        return [table[family] for family in self.families]

    def addresses(self, machine: str) -> list[str]:
        """A machine's addresses; the router's are those in the rack."""
        return [address(machine, family) for family in self.families]

    def __str__(self) -> str:
        return f"{self.backend}-{self.family}"


MAIN = Shape()
"""What most tests run on."""

MATRIX = (
    MAIN,
    Shape(backend="legacy"),
    Shape(families=FAMILIES["dual"]),
    Shape(families=FAMILIES["ipv6"]),
)
"""What the tests of ``test_everywhere.py`` run on."""


def network(machine: str, family: int) -> str:
    """The network that a machine is in."""
    return (BEYOND if machine == OUTSIDE else RACK)[family]


def address(machine: str, family: int) -> str:
    """A machine's address."""
    host = _HOSTS.get(machine) or 100 + int(machine.removeprefix("node"))
    return _host(network(machine, family), host)


def gateway(machine: str, family: int) -> str:
    """The router's address in the network that a machine is in."""
    return _host(network(machine, family), 1)


def prefix_length(machine: str, family: int) -> int:
    """Of the network that a machine is in."""
    return int(network(machine, family).partition("/")[2])


def _host(cidr: str, number: int) -> str:
    base = cidr.partition("/")[0]
    return base.removesuffix("0") + str(number) if "." in base else base + str(number)


def url_host(found: str) -> str:
    """An address as URLs and ``HOST:PORT`` have it."""
    return f"[{found}]" if ":" in found else found


def check_name(name: str) -> str:
    """The name of a cluster, if it is one.

    Raises:
        ValueError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a cluster: letters, digits and hyphens, a letter first")
    return name
