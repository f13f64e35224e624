"""The durable address store: which pod interface holds which address.

A returned lease survives a crash of the agent and of the machine: it is in the database file, on disk, before the
call returns (:mod:`felix_py.ipam.lease_file`). The file is read once, when it is opened, and held exclusively;
queries are answered from memory. What was lost with a missing file or an older copy,
:mod:`felix_py.cni.recovery` finds out.

A released address rests (:mod:`felix_py.ipam.allocate`). After a restart, the history beside the store tells for
how long it has (:mod:`felix_py.ipam.history`).
"""

from __future__ import annotations

import ipaddress
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from felix_py.ipam.allocate import Resting, choose
from felix_py.ipam.claims import Claim, LeaseKey, Lookup, nobody
from felix_py.ipam.errors import (
    AddressUnavailable,
    AllocationError,
    AlreadyLeased,
    PoolExhausted,
    StoreDamaged,
    StoreError,
)
from felix_py.ipam.history import Entry, History, since_boot
from felix_py.ipam.lease_file import LeaseFile
from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.layout import interface_name
from felix_py.records import Elsewhere, Lease
from policy.model import Family

__all__ = [
    "AddressStore",
    "AddressUnavailable",
    "AllocationError",
    "AlreadyLeased",
    "Claim",
    "LeaseKey",
    "Lookup",
    "PoolExhausted",
    "StoreDamaged",
    "StoreError",
    "nobody",
]


class AddressStore:
    """Leases of this node. One thread at a time.

    A damaged file is never repaired, moved or emptied here: without the leases, addresses of running pods would
    be given out twice.
    """

    def __init__(self, path: Path, elsewhere: Lookup = nobody, history: History | None = None) -> None:
        """Open or create the store. ``elsewhere`` is asked before an address is given out; ``history``: of the
        leases, to be read now and appended to.

        Raises:
            StoreDamaged: the content is not what was written.
            StoreError: in use by another agent, made by a newer felix-py, or not accessible.
        """
        self._file = LeaseFile(path)
        self._held = self._file.content
        """What the file holds. It is replaced as a whole, so that no thread sees it half read."""
        self._newest = max((lease.created for lease in self._held.leases.values()), default=0.0)
        self._elsewhere = elsewhere
        self.skipped: dict[str, Elsewhere] = {}
        """Other users of addresses that were passed over, by :attr:`Elsewhere.what`; a reader may clear it."""
        self.cooldown = 60.0
        """Seconds that a released address rests while another one is free; it may change at any time."""
        self._resting = Resting()
        self._history = history
        self._happened: list[Entry] = []
        """In the open group."""
        self.closed: frozenset[str] = frozenset()
        """CIDRs out of which nothing is given: see :meth:`close_empty`."""
        self._grouped = False
        self._unsure = False
        """Whether a write failed so that it is not known what the file holds."""
        self._read_history()

    def _read_history(self) -> None:
        """Let released addresses rest on. One whose release is not noted, by a crash, begins now."""
        if self._history is None:
            return
        now = since_boot()
        found = {a: now if at is None else min(at, now) for a, at in self._history.releases().items()}
        for text, at in sorted(found.items(), key=lambda item: item[1]):
            with suppress(ValueError):
                family, number = address_number(text)
                if number not in self._held.used[family]:
                    self._resting.add(family, number, at)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    @property
    def boot(self) -> str:
        """The boot id (random(4)) that the leases are from; empty if unknown."""
        return self._held.boot

    def set_boot(self, boot: str) -> None:
        """Store the boot id that all leases are from. Raises sqlite3.Error if the file cannot be written."""
        if boot == self._held.boot:
            return
        with self.group():
            self._file.set_boot(boot, self._held.boot)
            self._held.boot = boot

    def touch(self) -> None:
        """Test whether the file can be written: rewrite the boot id. Raises sqlite3.Error if not."""
        with self.group():
            self._file.set_boot(self._held.boot, self._held.boot)

    def no_longer(self, found: Iterable[Elsewhere]) -> list[Elsewhere]:
        """Those of ``found`` that are no longer in use elsewhere."""
        gone = []
        for earlier in found:
            family = Family(ipaddress.ip_network(earlier.what).version)
            now = self._elsewhere(family, earlier.last, 0)
            if now is None or now.what != earlier.what:
                gone.append(earlier)
        return gone

    def used_elsewhere(self, addresses: Iterable[str]) -> dict[str, Elsewhere]:
        """The other users of ``addresses``, by address; the addresses' own routes do not count."""
        asked = {address: address_number(address) for address in addresses}
        looked = {address: self._elsewhere(family, n, family.bits) for address, (family, n) in asked.items()}
        return {address: found for address, found in looked.items() if found is not None and not found.reserved}

    def get(self, container: str, ifname: str) -> Lease | None:
        """The lease of one interface. May be called from any thread."""
        return self._held.leases.get((container, ifname))

    def keys(self) -> list[LeaseKey]:
        """The keys of all leases. May be called from any thread."""
        return list(self._held.leases)

    def usage(self, cidrs: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Addresses that leases have and that they do not have, by CIDR. May be called from any thread.

        ValueError: a text is not a CIDR.
        """
        found: dict[str, tuple[int, int]] = {}
        for pool in map(Pool.of, cidrs):
            used = sum(number in pool for number in list(self._held.used[pool.family]))
            found[pool.cidr] = used, pool.last - pool.first + 1 - used
        return found

    def resting(self, cidrs: Iterable[str]) -> dict[str, int]:
        """How many free addresses of each CIDR rest. ValueError: a text is not a CIDR."""
        now = since_boot()
        return {pool.cidr: self._resting.still(pool, now, self.cooldown) for pool in map(Pool.of, cidrs)}

    def rested(self, address: str) -> float | None:
        """Seconds since an address was released; None if it was not, or is leased. ValueError: no address."""
        family, number = address_number(address)
        at = self._resting.of(family).get(number)
        return None if at is None else since_boot() - at

    def numbers(self, family: Family) -> list[int]:
        """The addresses of one family that leases have, as numbers. May be called from any thread."""
        return list(self._held.used[family])

    def close_empty(self, cidr: str) -> bool:
        """Give nothing out of a CIDR any more, if no lease is in it and none of its addresses rests; whether that
        is so. Not stored."""
        if self.usage([cidr])[cidr][0] or self.resting([cidr])[cidr]:
            return False
        self.closed |= {cidr}
        return True

    def shut(self, *cidrs: str) -> None:
        """Give nothing out of these CIDRs any more, as :meth:`close_empty` has done in an earlier life."""
        self.closed |= {*cidrs}

    def reopen(self, *cidrs: str) -> None:
        """Undo :meth:`close_empty` and :meth:`shut`."""
        self.closed -= {*cidrs}

    def all(self) -> tuple[Lease, ...]:
        """Every lease, oldest first."""
        return tuple(sorted(self._held.leases.values(), key=lambda lease: lease.created))

    def spare(self, cidr: str, most: int) -> list[str]:
        """Addresses of a CIDR that could be given out now, in the order in which they would be. ValueError: no
        CIDR."""
        pool = Pool.of(cidr)
        used, found = dict(self._held.used[pool.family]), list[str]()
        while len(found) < most and (free := self._free([pool], used)) is not None:
            used[free[1]] = ("", "")
            found.append(address_text(pool.family, free[1]))
        return found

    def full(self, cidrs: Iterable[str]) -> tuple[Family, ...]:
        """Families of which ``cidrs`` has pools, but no free address."""
        return tuple(family for family, pools in _pools(cidrs).items() if self._free(pools) is None)

    def allocate(self, claim: Claim, cidrs: Sequence[str], requested: Iterable[str] = ()) -> Lease:
        """Lease one address for each family that ``cidrs`` has, from the first of its CIDRs with a free one.

        ``requested`` are addresses to use instead, at most one a family, inside ``cidrs``. Leases from CIDRs no
        longer listed stay valid. The lease is on disk on return (inside :meth:`group`: when the group ends).

        Raises:
            AllocationError: nothing was leased; its subclass says why.
            ValueError: a text is not a CIDR or an address.
            sqlite3.Error: the file could not be written; nothing was leased.
        """
        self._check_new(claim)
        pools = _pools(cidrs)
        if not pools:
            raise PoolExhausted("the node has no pod CIDR")
        wanted = self._requested(requested, pools)
        cursors: dict[str, int] = {}
        for family, candidates in pools.items():
            if family in wanted:
                continue
            if (free := self._free(candidates)) is None:
                raise PoolExhausted(self._exhausted(candidates))
            pool, wanted[family] = free
            cursors[pool.cidr] = wanted[family]
        return self._insert(claim, wanted, cursors)

    def record(self, claim: Claim, addresses: Iterable[str]) -> Lease:
        """Record addresses that another IPAM plugin gave to the claim, at most one a family.

        Raises:
            AllocationError: another interface holds one of them, or two are of one family.
            ValueError: a text is not an address.
            sqlite3.Error: the file could not be written; nothing was recorded.
        """
        self._check_new(claim)
        return self._insert(claim, self._requested(addresses, None), {})

    def release(self, container: str, ifname: str) -> Lease | None:
        """Release a lease. Returns it, or None if there is none; sqlite3.Error: not written, the lease stays."""
        lease = self._held.leases.get((container, ifname))
        if lease is None:
            return None
        with self.group():
            self._file.delete(lease)
            del self._held.leases[container, ifname]
            now = since_boot()
            for family, text in lease.addresses.items():
                number = address_number(text)[1]
                del self._held.used[family][number]
                self._resting.add(family, number, now)
            self._note("released", lease)
        return lease

    @contextmanager
    def group(self, committed: Callable[[], None] = lambda: None) -> Iterator[None]:
        """One transaction: changes inside share one write to disk, and are rolled back together if it fails.

        ``committed`` is called when they are in the file, before they are on disk; not of a group inside another.

        An AllocationError changes nothing, so it may be caught inside; any other error must leave the block.
        """
        if self._grouped:
            yield
            return
        if self._unsure:
            self._read_again()
        self._grouped = True
        before, resting = self._held.copy(), self._resting.copy()
        try:
            with self._file.transaction(committed):
                yield
        except BaseException:
            self._held, self._resting = before, resting
            self._happened.clear()
            self._unsure = True
            with suppress(sqlite3.Error):  # the disk that refused the write may refuse this one, too
                self._read_again()
            raise
        finally:
            self._grouped = False
        if self._history is not None and self._happened:
            self._history.note(self._happened)
            self._happened.clear()

    def _note(self, what: Literal["leased", "released"], lease: Lease) -> None:
        if self._history is not None:
            self._happened.append(self._history.entry(what, lease))

    def _read_again(self) -> None:
        """Read what a failed write left. Raises sqlite3.Error if that cannot be read, or is damaged."""
        self._held = self._file.read_again()
        self._unsure = False

    def _check_new(self, claim: Claim) -> None:
        if claim.key in self._held.leases:
            raise AlreadyLeased(f"container {claim.container} already has a lease for {claim.ifname}")

    def _free(self, pools: Sequence[Pool], used: Mapping[int, LeaseKey] | None = None) -> tuple[Pool, int] | None:
        """The next address; ``used``: those of the family that are taken, if not by leases alone."""
        open_ = [pool for pool in pools if pool.cidr not in self.closed]
        if not open_:
            return None
        used = self._held.used[open_[0].family] if used is None else used
        return choose(open_, used, self._resting, self._held.cursors, self._usable, since_boot(), self.cooldown)

    def _usable(self, pool: Pool, number: int) -> Elsewhere | None:
        found = self._elsewhere(pool.family, number, pool.length)
        if found is not None and not (found.reserved or found.lent):
            self.skipped[found.what] = found
        return found

    def _exhausted(self, pools: Sequence[Pool]) -> str:
        text = f"no free address is left in {', '.join(pool.cidr for pool in pools)}"
        others = [f"{found.what} is {found.how}" for found in list(self.skipped.values())[:3]]
        return f"{text} (not given out: {', '.join(others)}, …)" if others else text

    def _requested(
        self, requested: Iterable[str], pools: Mapping[Family, Sequence[Pool]] | None
    ) -> dict[Family, int]:
        wanted: dict[Family, int] = {}
        for text in requested:
            family, number = address_number(text)
            if family in wanted:
                raise AddressUnavailable(f"{text} is a second IPv{int(family)} address; an interface has one")
            open_pools = [pool for pool in (pools or {}).get(family, ()) if pool.cidr not in self.closed]
            if pools is not None and not any(number in pool for pool in open_pools):
                raise AddressUnavailable(f"{text} is not a pod address of the node's pod CIDRs")
            if (holder := self._held.used[family].get(number)) is not None:
                raise AddressUnavailable(f"{text} is in use by container {holder[0]}")
            length = next((p.length for p in (pools or {}).get(family, ()) if number in p), int(family.bits))
            if (found := self._elsewhere(family, number, length)) and not found.reserved:
                raise AddressUnavailable(f"{text} cannot be a pod's: {found.what} is {found.how}")
            wanted[family] = number
        return wanted

    def _insert(self, claim: Claim, numbers: Mapping[Family, int], cursors: Mapping[str, int]) -> Lease:
        # Strictly increasing, also if the clock steps back: the newest lease of a pod is its endpoint.
        created = max(time.time(), self._newest + 1e-6)
        addresses = {family: address_text(family, numbers[family]) for family in Family if family in numbers}
        owner = (claim.container, claim.ifname, claim.network, claim.namespace, claim.pod, claim.uid)
        lease = Lease(*owner, interface_name(claim.container, claim.ifname), addresses, created)
        with self.group():
            self._write(lease)
            for cidr, last in cursors.items():
                self._move_cursor(cidr, last)
        return lease

    def adopt(self, lease: Lease) -> None:
        """Store a lease known from elsewhere, in place of an older lease of its interface.

        Raises:
            AddressUnavailable: another interface holds one of its addresses; nothing has changed.
            ValueError: a text is not an address.
            sqlite3.Error: the file could not be written; nothing has changed.
        """
        numbers = {family: address_number(text)[1] for family, text in lease.addresses.items()}
        key = (lease.container, lease.ifname)
        for family, number in numbers.items():
            if (holder := self._held.used[family].get(number, key)) != key:
                raise AddressUnavailable(f"{lease.addresses[family]} is in use by container {holder[0]}")
        with self.group():
            self.release(*key)
            self._write(lease)

    def _write(self, lease: Lease) -> None:
        self._file.insert(lease)
        self._held.add(lease)
        for family, text in lease.addresses.items():
            self._resting.drop(family, address_number(text)[1])
        self._newest = max(self._newest, lease.created)
        self._note("leased", lease)

    def _move_cursor(self, cidr: str, last: int) -> None:
        self._file.move_cursor(cidr, last, self._held.cursors.get(cidr))
        self._held.cursors[cidr] = last


def _pools(cidrs: Iterable[str]) -> dict[Family, list[Pool]]:
    pools: dict[Family, list[Pool]] = {}
    for pool in map(Pool.of, cidrs):
        pools.setdefault(pool.family, []).append(pool)
    return pools
