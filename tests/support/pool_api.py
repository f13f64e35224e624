"""An API server that serves IPPools, and takes what agents write of blocks, as the real one does."""

from __future__ import annotations

import itertools
from typing import Any

from tests.support.fakeapi import Exchange, FakeApi, Json, Key

_OURS = "/apis/felixpy.io/v1alpha1"
POOLS, RESERVATIONS = f"{_OURS}/ippools", f"{_OURS}/ipreservations"
BLOCKS, AFFINITIES = f"{_OURS}/ipamblocks", f"{_OURS}/blockaffinities"


class PoolApi(FakeApi):
    """Create, merge patch and delete of blocks and affinities, with their preconditions."""

    def __init__(self) -> None:
        super().__init__()
        self._uids = itertools.count(1)
        for collection in (POOLS, RESERVATIONS, BLOCKS, AFFINITIES):
            self.install(collection)

    def add_pool(self, name: str, cidr: str, **spec: Any) -> None:
        """Create or change an IPPool."""
        created = f"2026-01-01T00:00:{next(self._uids):02}Z"
        old = self.objects.get((POOLS, "", name), {}).get("metadata", {})
        meta = {"name": name, "uid": f"uid-{name}", "creationTimestamp": old.get("creationTimestamp", created)}
        self.put(POOLS, {"metadata": meta, "spec": {"cidr": cidr, **spec}})

    def add_block(self, cidr: str, node: str) -> None:
        """Another node's block."""
        meta = {"name": cidr.replace(".", "-").replace("/", "-"), "uid": f"uid-{cidr}"}
        self.put(BLOCKS, {"metadata": meta, "spec": {"cidr": cidr, "node": node, "nodeUID": f"uid-{node}"}})

    def blocks(self, node: str = "n1") -> set[str]:
        """The CIDRs of a node's blocks."""
        with self.changed:
            found = [obj["spec"] for key, obj in self.objects.items() if key[0] == BLOCKS]
        return {spec["cidr"] for spec in found if spec["node"] == node}

    def _write(self, exchange: Exchange) -> None:
        collection, _, name = exchange.request.path.rpartition("/")
        if exchange.request.path in (BLOCKS, AFFINITIES):
            self._create(exchange, exchange.request.path)
        elif collection in (BLOCKS, AFFINITIES):
            with self.changed:
                self._change(exchange, (collection, "", name))
        else:
            super()._write(exchange)

    def _create(self, exchange: Exchange, collection: str) -> None:
        body: Json = exchange.request.body
        with self.changed:
            if (collection, "", body["metadata"]["name"]) in self.objects:
                exchange.refuse(409, "AlreadyExists", "exists")
                return
            body["metadata"]["uid"] = f"uid-{next(self._uids)}"
            made = self.put(collection, body)
        exchange.send(201, made)

    def _change(self, exchange: Exchange, key: Key) -> None:
        request = exchange.request
        if (held := self.objects.get(key)) is None:
            exchange.refuse(404, "NotFound", "no such object")
            return
        asked = request.body["preconditions" if request.method == "DELETE" else "metadata"]
        if any(held["metadata"][name] != value for name, value in asked.items()):
            exchange.refuse(409, "Conflict", "the object has been modified")
        elif request.method == "DELETE":
            self.delete(*key)
            exchange.send(200, held)
        else:
            exchange.send(200, self.put(key[0], {**held, "spec": {**held["spec"], **request.body["spec"]}}))
