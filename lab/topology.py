"""The lab's addresses, names and AS numbers: a rack of nodes behind one top-of-rack router.

Every lab has the same addresses, because every lab lives in network namespaces of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from policy.model import Family

TOR = "tor"
TOR_ASN = 65000
"""Node number i has AS 65000 + i (RFC 6996: private use up to 65534)."""

MOST_NODES = 100
CLUSTER_CIDRS = {Family.V4: "10.244.0.0/16", Family.V6: "fd00:10:244::/48"}
SERVICE_CIDRS = {Family.V4: "10.96.0.0/16", Family.V6: "fd00:10:96::/112"}
UNDERLAY = {Family.V4: "172.30.0.0/16", Family.V6: "fd00:172:30::/48"}
"""Links between nodes and router, and the API server: what the nodes have static routes to."""

API_ADDRESS = {Family.V4: "172.30.255.1", Family.V6: "fd00:172:30:ffff::1"}
API_PORT = 6443
ROUTER_ID = "172.30.255.1"
WORLD_CIDRS = {Family.V4: "203.0.113.0/24", Family.V6: "2001:db8:113::/64"}
WORLD = {
    "world-a": {Family.V4: "203.0.113.10", Family.V6: "2001:db8:113::10"},
    "world-b": {Family.V4: "203.0.113.20", Family.V6: "2001:db8:113::20"},
}
"""Hosts outside the cluster (documentation prefixes, RFC 5737 and 3849), two for ``ipBlock`` with ``except``."""

WORLD_PORTS = (("TCP", 80), ("TCP", 443), ("TCP", 53), ("UDP", 53))

_NAME = re.compile(r"[a-z][a-z0-9]{0,19}")
_NETNS_NAME_MOST = 255


class BadName(ValueError):
    """A lab's name that cannot be used."""


def check_name(name: str) -> str:
    """The name, if it is one. Without hyphens, so that one lab's namespaces never look like another's.

    Raises:
        BadName: it is not.
    """
    if not _NAME.fullmatch(name):
        raise BadName(f"{name!r} is no name for a lab: lower-case letters and digits, at most 20, a letter first")
    return name


def netns_prefix(lab: str) -> str:
    """How the names of all network namespaces of a lab start."""
    return f"felix-{lab}-"


def machine_netns(lab: str, machine: str) -> str:
    """Network namespace of a node or the router."""
    return netns_prefix(lab) + machine


def pod_netns(lab: str, namespace: str, pod: str, uid: str) -> str:
    """Network namespace of a pod. The uid tells a pod from its predecessor of the same name."""
    ending = f".{uid[:8]}"
    return (netns_prefix(lab) + f"{namespace}.{pod}")[: _NETNS_NAME_MOST - len(ending)] + ending


@dataclass(frozen=True, slots=True)
class Node:
    """Node number ``number`` (from 1) of a lab with these families."""

    number: int
    families: tuple[Family, ...]

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def asn(self) -> int:
        return TOR_ASN + self.number

    @property
    def router_id(self) -> str:
        """BGP identifier: the IPv4 link address, which an IPv6 lab merely does not use."""
        return self._link(Family.V4, 1)

    @property
    def addresses(self) -> dict[Family, str]:
        """The node's own, on its link to the router."""
        return {family: self._link(family, 1) for family in self.families}

    @property
    def gateways(self) -> dict[Family, str]:
        """The router's, on the same link."""
        return {family: self._link(family, 0) for family in self.families}

    @property
    def link_prefix(self) -> dict[Family, int]:
        """Prefix length of the link: point to point (RFC 3021, RFC 6164)."""
        return {Family.V4: 31, Family.V6: 127}

    @property
    def pod_cidrs(self) -> dict[Family, str]:
        """What a controller manager would allocate."""
        every = {Family.V4: f"10.244.{self.number}.0/24", Family.V6: f"fd00:10:244:{self.number}::/64"}
        return {family: every[family] for family in self.families}

    def _link(self, family: Family, end: int) -> str:
        if family is Family.V4:
            return f"172.30.{self.number}.{end}"
        return f"fd00:172:30:{self.number}::{end:x}" if end else f"fd00:172:30:{self.number}::"


def nodes(count: int, families: tuple[Family, ...]) -> list[Node]:
    """The lab's nodes."""
    return [Node(number, families) for number in range(1, count + 1)]
