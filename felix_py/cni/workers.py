"""The plugin's blocking work in threads: the address store's disk and the kernel's interfaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar, cast

from felix_py.dataplane.links import HostEnd, LinkError, Links, PodLink
from felix_py.ipam.store import AddressStore, AllocationError, LeaseKey
from felix_py.records import Elsewhere, Lease
from felix_py.threads import Batcher, Worker, tell
from policy.model import Family

T = TypeVar("T")

_Write = tuple[Callable[[AddressStore], Any], Callable[[Any], None] | None]
"""A change of the store, and whom to tell that it is committed."""


class Leases:
    """The address store for the event loop: concurrent changes share one write to disk."""

    def __init__(self, store: AddressStore) -> None:
        self._store = store
        self._batches: Batcher[_Write, Any] = Batcher("leases", self._write)

    def get(self, container: str, ifname: str) -> Lease | None:
        """The lease of one interface, without waiting."""
        return self._store.get(container, ifname)

    def keys(self) -> list[LeaseKey]:
        """(container, ifname) of all leases, without waiting."""
        return self._store.keys()

    def usage(self, cidrs: Iterable[str]) -> dict[str, tuple[int, int]]:
        """See :meth:`AddressStore.usage`, without waiting."""
        return self._store.usage(cidrs)

    def resting(self, cidrs: Iterable[str]) -> dict[str, int]:
        """See :meth:`AddressStore.resting`, without waiting."""
        return self._store.resting(cidrs)

    def set_cooldown(self, seconds: float) -> None:
        """How long released addresses rest while others are free, from now on."""
        self._store.cooldown = seconds

    def numbers(self, family: Family) -> list[int]:
        """See :meth:`AddressStore.numbers`, without waiting."""
        return self._store.numbers(family)

    def take_skipped(self) -> list[Elsewhere]:
        """Other users of addresses that were passed over since the last call."""
        skipped, self._store.skipped = self._store.skipped, {}
        return list(skipped.values())

    async def use(self, action: Callable[[AddressStore], T], committed: Callable[[T], None] | None = None) -> T:
        """Run ``action`` on the store; its changes are on disk when this returns.

        ``committed`` is called with its result, in the store's thread, as soon as only power loss can undo it.

        Raises:
            AllocationError, ValueError: from ``action``.
            sqlite3.Error: nothing was written.
        """
        return cast(T, await self._batches.submit((action, committed)))

    def close(self) -> None:
        """Close the store after the last action."""
        self._batches.close()
        self._store.close()

    def _write(self, writes: Sequence[_Write]) -> list[Any]:
        results: list[Any] = []

        def told() -> None:
            for (_, committed), result in zip(writes, results, strict=True):
                if committed is not None and not isinstance(result, Exception):
                    committed(result)

        with self._store.group(told):
            for action, _ in writes:
                try:
                    results.append(action(self._store))
                except (AllocationError, ValueError) as error:
                    results.append(error)
        return results


class Making:
    """An interface on its way: the pair is made at once, and configured when its addresses are known."""

    def __init__(self, pair: PodLink, interfaces: Interfaces, links: Links, worker: Worker) -> None:
        self.link = pair
        """As it is to be, once :meth:`complete` was called."""
        self._interfaces = interfaces
        self._links = links
        self._worker = worker
        self.lease: Lease | None = None
        """Whose it is, once :meth:`complete` was called."""
        self._made = False
        self._failed: Exception | None = None
        self._done: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        worker.post(lambda: self._make(pair))

    def complete(self, link: PodLink, lease: Lease) -> None:
        """Have it configured (:meth:`Links.configure`). Any thread."""
        self.link, self.lease = link, lease
        self._worker.post(lambda: self._complete(link, lease))

    def follow(self, leasing: asyncio.Task[Any]) -> None:
        """What should have led to :meth:`complete` has ended: if it has failed, so has this."""
        if leasing.cancelled():
            self._done.cancel()
        elif (error := leasing.exception()) and not self._done.done():
            self._done.set_exception(error)

    async def done(self) -> Lease:
        """Return the lease once the interface is configured; raises as :meth:`Links.make` and
        :meth:`Links.configure` do."""
        return await self._done

    async def abandon(self) -> None:
        """Delete it, if it was made. Raises LinkError if it cannot be deleted."""
        self._done.cancel()
        await self._worker.submit(lambda: None)  # after its steps
        if self._made:
            await self._interfaces.delete(self.link.host)

    def _make(self, pair: PodLink) -> None:
        try:
            self._links.make(pair)
            self._made = True
        except Exception as error:
            self._failed = error

    def _complete(self, link: PodLink, lease: Lease) -> None:
        try:
            if self._made:
                self._links.configure(link)
        except Exception as error:
            self._failed = error
        tell([(self._done, self._failed or lease)])


class Interfaces:
    """Pod interfaces for the event loop, in the network namespace of the object's creation."""

    def __init__(self) -> None:
        self._links = Links()
        self._worker = Worker("links")
        self._dying = Links()
        self._deletions: Batcher[str, None] = Batcher("links-deletion", self._delete)

    def begin(self, link: PodLink) -> Making:
        """Have a pair made (:meth:`Links.make`)."""
        return Making(link, self, self._links, self._worker)

    async def exists(self, host: str) -> bool:
        """See :meth:`Links.exists`."""
        return await self._call(lambda: self._links.exists(host))

    async def host_ends(self) -> list[HostEnd]:
        """See :meth:`Links.host_ends`."""
        return await self._call(self._links.host_ends)

    async def label(self, index: int, text: str) -> None:
        """See :meth:`Links.label`."""
        await self._call(lambda: self._links.label(index, text))

    async def check(self, link: PodLink, default_routes: Collection[Family]) -> list[str]:
        """See :meth:`Links.check`."""
        return await self._call(lambda: self._links.check(link, default_routes))

    async def delete(self, host: str) -> None:
        """See :meth:`Links.delete`; concurrent deletions share one RCU grace period."""
        await self._deletions.submit(host)

    def close(self) -> None:
        """Close after the last operation."""
        self._worker.close()
        self._deletions.close()
        self._links.close()
        self._dying.close()

    async def _call(self, function: Callable[[], T]) -> T:
        return await self._worker.submit(function)

    def _delete(self, hosts: Sequence[str]) -> list[LinkError | None]:
        self._dying.delete(hosts)
        return [None] * len(hosts)
