"""A node's own BGP settings, by annotations or labels of its Node object."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping, Sequence

from bgp import fields
from bgp.fields import BGPConfigError
from bgp.resources import BGPNode, Problem

AS_NUMBER = "felixpy.io/as-number"
CLUSTER_ID = "felixpy.io/route-reflector-cluster-id"
ROUTER_ID = "felixpy.io/router-id"
ADDRESSES = {4: "felixpy.io/bgp-ipv4-address", 6: "felixpy.io/bgp-ipv6-address"}

_FOREIGN = {
    AS_NUMBER: ("projectcalico.org/ASNumber", "kube-router.io/node.asn"),
    CLUSTER_ID: ("projectcalico.org/RouteReflectorClusterID", "kube-router.io/rr.server"),
    ROUTER_ID: ("kube-router.io/router.id",),
    ADDRESSES[4]: ("projectcalico.org/IPv4Address",),
    ADDRESSES[6]: ("projectcalico.org/IPv6Address",),
}
"""Our key -> Calico's and kube-router's of the same meaning."""

KEYS = frozenset({*_FOREIGN, *(key for keys in _FOREIGN.values() for key in keys)})
"""Every annotation that is read."""


def bgp_node(
    name: str,
    addresses: Sequence[str],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    *,
    foreign: bool = False,
) -> tuple[BGPNode, tuple[Problem, ...]]:
    """The node, and its settings that cannot be used.

    ``addresses``: the Node's own, of which the first of each family counts unless another one is given.
    An annotation counts before a label of the same key. ``foreign``: Calico's and kube-router's annotations
    count where there is none of ours.
    """
    problems: list[Problem] = []

    def read(key: str, check: Callable[[str, str], str]) -> str:
        for source in (key, *(_FOREIGN[key] if foreign else ())):
            value = annotations.get(source) or labels.get(source)
            if value:
                try:
                    return check(source, value)
                except BGPConfigError as error:
                    problems.append(Problem("Node", name, source, str(error).partition(": ")[2]))
                    return ""
        return ""

    asn = read(AS_NUMBER, lambda path, value: str(fields.asn(path, value)))
    first = {family: next((a for a in addresses if _family(a) == family), "") for family in ADDRESSES}
    own = {family: read(key, _address_of(family)) or first[family] for family, key in ADDRESSES.items()}
    node = BGPNode(
        name=name,
        addresses=tuple(address for address in own.values() if address),
        labels=labels,
        as_number=int(asn) if asn else None,
        router_id=read(ROUTER_ID, lambda path, value: _identifier(path, value, name)),
        cluster_id=read(CLUSTER_ID, _cluster_id),
    )
    return node, tuple(problems)


def _family(address: str) -> int:
    return 6 if ":" in address else 4


def _address_of(family: int) -> Callable[[str, str], str]:
    def check(path: str, value: str) -> str:
        # Calico's have the prefix length of the link behind them.
        found = fields.address(path, value.partition("/")[0])
        if _family(found) != family:
            raise BGPConfigError(f"{path}: {found} is not an IPv{family} address")
        return found

    return check


def _identifier(path: str, value: str, name: str) -> str:
    return fields.hashed_router_id(name) if value == "hash" else fields.identifier(path, value)


def _cluster_id(path: str, value: str) -> str:
    """kube-router's may be a number."""
    if value.isascii() and value.isdecimal() and len(value) <= 10 and 0 < int(value) < 2**32:
        return str(ipaddress.IPv4Address(int(value)))
    return fields.identifier(path, value)
