"""A stand-in for an API server of a cluster with IPPools."""

from __future__ import annotations

import itertools
from typing import Any

from tests.support.fakeapi import BLOCK_AFFINITIES, IP_POOLS, IP_RESERVATIONS, IPAM_BLOCKS, FakeApi


class PoolApi(FakeApi):
    """With what an operator does, and what is seen of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._uids = itertools.count(1)
        for collection in (IP_POOLS, IP_RESERVATIONS, IPAM_BLOCKS, BLOCK_AFFINITIES):
            self.install(collection)

    def add_pool(self, name: str, cidr: str, **spec: Any) -> None:
        """Create or change an IPPool."""
        created = f"2026-01-01T00:00:{next(self._uids):02}Z"
        old = self.objects.get((IP_POOLS, "", name), {}).get("metadata", {})
        meta = {"name": name, "uid": f"uid-{name}", "creationTimestamp": old.get("creationTimestamp", created)}
        self.put(IP_POOLS, {"metadata": meta, "spec": {"cidr": cidr, **spec}})

    def add_block(self, cidr: str, node: str) -> None:
        """Another node's block."""
        meta = {"name": cidr.replace(".", "-").replace("/", "-"), "uid": f"uid-{cidr}"}
        self.put(IPAM_BLOCKS, {"metadata": meta, "spec": {"cidr": cidr, "node": node, "nodeUID": f"uid-{node}"}})

    def blocks(self, node: str = "n1") -> set[str]:
        """The CIDRs of a node's blocks."""
        with self.changed:
            found = [obj["spec"] for key, obj in self.objects.items() if key[0] == IPAM_BLOCKS]
        return {spec["cidr"] for spec in found if spec["node"] == node}
