"""IPPools for a test, and what nodes make of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.cluster.cluster import Cluster
from tests.cluster.machine import wait_for
from tests.cluster.plan import LOAD_BALANCERS

FOR_PODS = "10.244.128.0/20"
"""In the cluster's CIDR, which the router lets in; far from the nodes' podCIDRs."""


def ip_pool(name: str, cidr: str, block_size: int, use: str = "Workload") -> dict[str, Any]:
    """An IPPool; what its pods send out is masqueraded."""
    spec = {"cidr": cidr, "blockSize": block_size, "natOutgoing": True, "allowedUses": [use]}
    return {"apiVersion": "felixpy.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name}, "spec": spec}


@contextmanager
def pool(cluster: Cluster, found: dict[str, Any]) -> Iterator[None]:
    """An IPPool that is there for as long as the ``with`` lasts."""
    cluster.apply(found)
    try:
        yield
    finally:
        cluster.kubectl("delete", "ippool", found["metadata"]["name"])


def blocks(cluster: Cluster) -> Counter[str]:
    """How many blocks each node has."""
    return Counter(str(found["spec"]["node"]) for found in cluster.get("ipamblocks")["items"])


def remove_blocks(cluster: Cluster) -> None:
    """Take away all blocks, which must be empty, of pools that are gone. Nodes do so after ten minutes."""
    cluster.kubectl("delete", "ipamblocks", "--all")
    no_block_is_left(cluster)


def no_block_is_left(cluster: Cluster) -> None:
    """Wait until no node has a block, nor the intention to."""
    wait_for("the end of all blocks", lambda: not blocks(cluster), 120)
    wait_for("the end of affinities", lambda: not cluster.get("blockaffinities")["items"], 60)


def load_balancer_pool(name: str, family: int) -> dict[str, Any]:
    """An IPPool of all addresses that load balancers may have here."""
    cidr = LOAD_BALANCERS[family]
    return ip_pool(name, cidr, int(cidr.partition("/")[2]), "LoadBalancer")


def announced(cluster: Cluster, family: int) -> str:
    """What the router has of the addresses of load balancers."""
    return cluster.machines["tor"].run("ip", f"-{family}", "route", "show", "root", LOAD_BALANCERS[family])
