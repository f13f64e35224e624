"""Names and numbers that identify the agent's objects in the kernel."""

from __future__ import annotations

import hashlib
import re

from policy.model import Family

INTERFACE_PREFIX = "felix"
CHAIN_PREFIX = "FELIX-"
COMMENT_PREFIX = "felix:"

FIRST_INTERFACE = "eth0"
"""CNI_IFNAME of the interface whose addresses container runtimes report as a pod's, by CRI's implementations."""

ROUTE_PROTOCOL_PODS = 88
"""Routes to local pods and the blackholes of the node's own pod CIDRs (rtnetlink(7) rtm_protocol)."""

ROUTE_PROTOCOL_LEARNED = 89
"""Routes learned from peers. Neither 186 (FRR's BGP) nor any other number of iproute2's rt_protos."""

HOST_MAC = "ee:ee:ee:ee:ee:ee"
"""MAC of every host end, and of the gateway in each pod's permanent neighbour entry: it must never change."""

LINK_GROUP = 0xFE11C
"""Link group (``ip link … group``) of every host end; unlike the name, it survives a rename of the interface."""

EXCLUDED = ("node.kubernetes.io/exclude-from-external-load-balancers", "true")
"""The label of a node that announces no Services, with the value that Calico asks for."""

DRAIN = "felixpy.io/bgp-drain"
"""Annotation, or taint, of a Node that BGP is to lead traffic away from."""

LOAD_BALANCER_IPS = "felixpy.io/loadbalancer-ips"
"""Annotation of a Service that asks for addresses."""

FOREIGN_LOAD_BALANCER_IPS = ("metallb.universe.tf/loadBalancerIPs", "projectcalico.org/loadBalancerIPs")
"""The same of other projects, read where the cluster wants that."""

LEASE = "felix-py-controllers"
"""Name of the Lease by which one agent leads, in the agents' own namespace."""

GATEWAY = {Family.V4: "169.254.1.1", Family.V6: "fe80::1"}


def set_prefix(family: Family) -> str:
    """Prefix of the names of the agent's IP sets in one family."""
    return f"felix{int(family)}-"


def interface_name(container: str, ifname: str) -> str:
    """Host interface of a pod's interface: ``felix`` and 10 hex digits (IFNAMSIZ allows 15 characters)."""
    return INTERFACE_PREFIX + hashlib.sha256(f"{container}\0{ifname}".encode()).hexdigest()[:10]


def is_interface_name(name: str) -> bool:
    """Whether ``name`` has the form that :func:`interface_name` returns."""
    return re.fullmatch(INTERFACE_PREFIX + "[0-9a-f]{10}", name) is not None
