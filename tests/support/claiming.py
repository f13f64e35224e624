"""The parts of a node's agent that claims need, on a stand-in for the API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from bgp.resources import Problem
from felix_py.agent.block_notes import BlockNotes
from felix_py.agent.block_writer import BlockWriter
from felix_py.agent.claims import Around, Claims
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.loan_book import LoanBook
from felix_py.cni.workers import Leases
from felix_py.datastore.client import Api
from felix_py.datastore.cluster import Cluster
from felix_py.ipam.reserved import Reserved
from felix_py.ipam.store import AddressStore, Claim, PoolExhausted
from felix_py.metrics import Metrics
from felix_py.notices import NoticeKind, Notices
from policy.model import Family, Pod
from tests.support.fakeapi import (
    BLOCK_AFFINITIES,
    IP_POOLS,
    IP_RESERVATIONS,
    IPAM_BLOCKS,
    NAMESPACES,
    NODES,
    PATIENCE,
    Exchange,
    FakeApi,
    Json,
)
from tests.support.watching import QUICK, configuration

KINDS = (IP_POOLS, IP_RESERVATIONS, IPAM_BLOCKS, BLOCK_AFFINITIES)
POD_CIDRS = ("10.99.0.0/24",)


class Node:
    """The parts of one node's agent that claims need."""

    def __init__(self, server: FakeApi, folder: Path, name: str, *, strict: bool = True) -> None:
        self.server = server
        self.name = name
        self.notices = Notices(Metrics())
        self.warned: list[Problem] = []
        self.pods: dict[str, Pod] = {}
        """By address, as the API server has them."""
        reserved = Reserved(lambda _family, _number, _length: None)
        self.leases = Leases(AddressStore(folder / "leases.db", reserved))
        self.book = LoanBook(folder / "lent-addresses.json", reserved, self.leases)
        self.cluster = Cluster(Api(lambda: configuration(server)), node_name=name, timing=QUICK)
        self.claims = Claims(
            name,
            BlockNotes(folder),
            self.cluster.store,
            DeclaredPools(self.cluster.store, folder),
            self.cluster.block_objects,
            self.leases,
            BlockWriter(self.cluster.api, name),
            self.book,
            Around(lambda: POD_CIDRS, tuple(Family), lambda address: self.pods.get(address)),
            self.notices,
            lambda problem, _uid: self.warned.append(problem),
            timeout=PATIENCE,
            strict=strict,
        )
        self.changed = asyncio.Event()
        self.claims.on_change = self.changed.set

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not (self.claims.known and condition()):
                self.changed.clear()
                await self.changed.wait()

    def cidrs(self, *asked: str) -> tuple[str, ...]:
        return self.claims.cidrs_for("shop", asked)

    async def lease(self, pod: str, *asked: str) -> str:
        """An ADD, as the plugin does it. PoolExhausted: there is no address."""
        claim = Claim(pod, "eth0", "felix", "shop", pod)
        while True:
            cidrs = self.cidrs(*asked)
            try:
                if not cidrs:
                    raise PoolExhausted("no block")
                lease = await self.leases.use(partial(AddressStore.allocate, claim=claim, cidrs=cidrs))
            except PoolExhausted as error:
                if why := await self.claims.wait_for_address("shop", asked):
                    raise PoolExhausted(f"{error}: {why}") from None
            else:
                return lease.addresses[Family.V4]

    async def release(self, pod: str) -> None:
        await self.leases.use(lambda store: store.release(pod, "eth0"))

    def told(self) -> str:
        return " ".join(self.notices.of(NoticeKind.IP_POOLS).values())


@asynccontextmanager
async def running(
    server: FakeApi, folder: Path, name: str = "n1", *, strict: bool = True, seen: bool = True
) -> AsyncIterator[Node]:
    """A node that runs, whose pools and blocks are known, unless it may not see them (not ``seen``)."""
    folder.mkdir(exist_ok=True)
    if (NODES, "", name) not in server.objects:
        server.put(NODES, {"metadata": {"name": name, "uid": f"uid-{name}", "labels": {"zone": "a"}}})
    node = Node(server, folder, name, strict=strict)
    node.cluster.start()
    async with AsyncExitStack() as stack:
        stack.callback(node.leases.close)
        stack.push_async_callback(node.cluster.stop)
        async with asyncio.timeout(PATIENCE):
            await node.cluster.in_sync()
        task = asyncio.create_task(node.claims.run())
        stack.push_async_callback(stop, task)
        if seen:
            await node.until(lambda: True)
        yield node


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def declare(server: FakeApi, name: str, **spec: object) -> None:
    held = server.objects.get((IP_POOLS, "", name), {"metadata": {}})
    created = held["metadata"].get("creationTimestamp", f"2026-01-01T00:00:{len(server.objects):02}Z")
    server.put(IP_POOLS, {"metadata": {"name": name, "uid": name, "creationTimestamp": created}, "spec": spec})


def objects(server: FakeApi, path: str) -> list[Json]:
    with server.changed:
        return [obj["spec"] for key, obj in sorted(server.objects.items()) if key[0] == path]


def states(server: FakeApi) -> dict[str, str]:
    return {one["cidr"]: one["state"] for one in objects(server, BLOCK_AFFINITIES)}


@contextmanager
def pool_server() -> Iterator[FakeApi]:
    """A server with the kinds of pools and one namespace."""
    with FakeApi() as found:
        for path in KINDS:
            found.install(path)
        found.put(NAMESPACES, {"metadata": {"name": "shop", "labels": {"team": "x"}}})
        yield found


def lost_after(exchange: Exchange) -> bool:
    """It happens, and nobody hears of it."""
    exchange.send = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    exchange.api._write(exchange)
    exchange.cut()
    return True


def lost_before(exchange: Exchange) -> bool:
    exchange.cut()
    return True
