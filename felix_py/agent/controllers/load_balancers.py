"""Gives Services of type LoadBalancer their addresses, while this agent leads.

What is written shows in the watch a moment later. Until then a Service counts as having what it was given, so
that nobody else is given that; also where no answer came, for as long as the write may still arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace

from felix_py import log
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.agent.elector import Elector, NotLeading
from felix_py.agent.events import any_of
from felix_py.backoff import Backoff
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.followed import Followed
from felix_py.datastore.load_balancers import LOAD_BALANCERS, write_ingress
from felix_py.datastore.store import Store
from felix_py.ipam.load_balancers import Key, Plan, Refusal, entries, plan, pools_for_services
from felix_py.metrics import Metrics
from felix_py.records import Ingress, LoadBalancer

_PACE = 0.2
"""Seconds between two rounds at least: whoever applies a hundred Services has them planned together."""

_ARRIVES = 30.0
"""Seconds in which a write without an answer may still arrive."""

_RETRY = (1.0, 60.0)


class Tell(Protocol):
    """Writes Events (:class:`felix_py.datastore.cluster.Cluster`)."""

    def tell_service(self, service: LoadBalancer, warning: bool, reason: str, message: str) -> None: ...

    def warn_pool(self, name: str, uid: str, reason: str, message: str) -> None: ...


class _Written(Struct, frozen=True):
    """What was written over a version of a Service. ``until``: the time when it counts no more."""

    version: str
    ingress: tuple[Ingress, ...]
    until: float


class LoadBalancers:
    """The controller. On the event loop only; planning and writes are in other threads."""

    def __init__(
        self,
        api: Api,
        store: Store,
        pools: DeclaredPools,
        elector: Elector,
        follow: Callable[[], Followed],
        tell: Tell,
        metrics: Metrics,
        *,
        foreign: bool,
    ) -> None:
        """``follow`` returns Services to be followed. ``foreign``: other projects' annotations count."""
        self._api = api
        self._store = store
        self._pools = pools
        self._elector = elector
        self._follow = follow
        self._tell = tell
        self._metrics = metrics
        self._foreign = foreign
        self._log = log.get("load-balancers")
        self._again = asyncio.Event()
        self._written: dict[Key, _Written] = {}
        self._told: Mapping[Key, tuple[Refusal, ...]] = {}
        self._full: frozenset[str] = frozenset()
        self._backoff = Backoff(*_RETRY)
        self._failing = ""
        pools.on_change(self._again.set)
        store.namespaces.on_change(self._again.set)

    async def run(self) -> None:
        """Follow Services and give them addresses while there are pools for them, until cancelled."""
        try:
            while True:
                while not self._is_wanted():
                    self._again.clear()
                    await self._again.wait()
                await self._serve(self._follow())
        finally:
            self._forget()

    def _is_wanted(self) -> bool:
        """Whether there is a pool for Services. None is used before the reservations are known."""
        return self._pools.listed and bool(pools_for_services(self._pools.pools))

    async def _serve(self, followed: Followed) -> None:
        """Until there is no pool for Services any more."""
        followed.start()
        try:
            await followed.until_listed()
            while self._is_wanted():
                followed.changed.clear()
                self._again.clear()
                delay = await self._round(tuple(followed.table(LOAD_BALANCERS).records.values()))
                await asyncio.sleep(_PACE)
                await any_of((followed.changed, self._again), delay)
        finally:
            await followed.stop()

    def _forget(self) -> None:
        """What another leader may have changed by the time this one leads again."""
        self._written.clear()
        self._told, self._full = {}, frozenset()
        self._metrics.load_balancer_addresses.clear()
        self._metrics.load_balancers_refused.set(0)

    async def _round(self, seen: tuple[LoadBalancer, ...]) -> float | None:
        """Plan and write; returns the seconds until the next round, None: when something changes."""
        services = self._with_written(seen)
        pools = self._pools.pools
        reservations = self._pools.reservations
        namespaces = {one.name: one.labels for one in self._store.namespaces.records.values()}
        nodes = {address for node in self._store.nodes.records.values() for address in node.addresses}
        wanted = await asyncio.to_thread(
            plan, services, pools, reservations, namespaces, used=nodes, foreign=self._foreign
        )
        by_key = {one.key: one for one in services}
        self._say(wanted, by_key)
        for key, addresses in wanted.ingress.items():
            service = by_key[key]
            made = entries(service, addresses, pools)
            try:
                await asyncio.to_thread(self._write, service, made)
            except NotLeading:
                return _RETRY[0]  # who leads now goes on; or this agent does, when it has renewed
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and error.status in (404, 409):
                    continue  # it has changed, and the watch tells how
                if not isinstance(error, ApiError) or error.status >= 500:
                    self._note(service, addresses, made, _ARRIVES)
                return self._failed(error)
            self._note(service, addresses, made, float("inf"))
            if addresses:
                self._tell.tell_service(service, False, "AddressAllocated", ", ".join(addresses))
        self._backoff.reset()
        self._failing = ""
        ends = [one.until for one in self._written.values() if one.until != float("inf")]
        return max(_PACE, min(ends) - time.monotonic()) if ends else None

    def _write(self, service: LoadBalancer, made: list[bytes]) -> None:
        with self._elector.writing() as seconds:
            write_ingress(self._api, service, made, seconds)

    def _note(self, service: LoadBalancer, given: tuple[str, ...], made: list[bytes], seconds: float) -> None:
        others = {one.raw: one for one in service.ingress}
        kept = [others[raw] for raw in made if raw in others]
        ours = [Ingress(address, b"") for address in given]
        until = time.monotonic() + seconds
        self._written[service.key] = _Written(service.resource_version, (*kept, *ours), until)

    def _with_written(self, seen: tuple[LoadBalancer, ...]) -> tuple[LoadBalancer, ...]:
        """The Services as they will be seen once the watch has told what was written."""
        now = time.monotonic()
        versions = {one.key: one.resource_version for one in seen}
        self._written = {
            key: one for key, one in self._written.items() if versions.get(key) == one.version and now < one.until
        }
        return tuple(
            replace(one, ingress=self._written[one.key].ingress) if one.key in self._written else one
            for one in seen
        )

    def _failed(self, error: ApiError | Unreachable) -> float:
        sort = str(error.status) if isinstance(error, ApiError) else "unreachable"
        if sort != self._failing:
            self._log.warning("cannot write the addresses of a Service", reason=str(error))
        self._failing = sort
        return self._backoff.delay(error.retry_after if isinstance(error, ApiError) else 0.0)

    def _say(self, wanted: Plan, services: Mapping[Key, LoadBalancer]) -> None:
        """Metrics, and Events for what is new."""
        addresses = self._metrics.load_balancer_addresses
        addresses.clear()
        for name, usage in wanted.usage.items():
            addresses.labels(name, "allocated").set(usage.allocated)
            addresses.labels(name, "free").set(usage.free)
        self._metrics.load_balancers_refused.set(len(wanted.refused))
        for key, refused in wanted.refused.items():
            for refusal in refused:
                if refusal not in self._told.get(key, ()):
                    self._tell.tell_service(services[key], True, refusal.reason, refusal.text)
        self._told = wanted.refused
        full = frozenset(name for name, usage in wanted.usage.items() if not usage.free)
        for name in sorted(full - self._full):
            text = "every address is given to a Service or reserved: no further Service gets one of this pool"
            self._tell.warn_pool(name, self._pools.uid(name), "PoolExhausted", text)
        self._full = full
