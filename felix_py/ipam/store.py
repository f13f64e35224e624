"""The durable address store: which pod interface holds which address.

A returned lease survives a crash of the agent and of the machine: it is in the database file, on disk, before the
call returns. A write-ahead log is not used: sqlite takes a lost or damaged log for a shorter one and drops its
leases without an error. Every commit also writes a digest over all rows, which is compared when the file is
opened. The file is read once, when it is opened, and held exclusively; queries are answered from memory.

sqlite's rollback journal makes a commit atomic across a crash of the agent. Across power loss it would need two
or three disk flushes a commit. The store flushes once, the database: power loss during a commit may leave a file
that does not match its digest, but then no pod that a lease could belong to is running either.

The digest detects neither a missing file nor an older copy; :mod:`felix_py.cni.recovery` does.
"""

from __future__ import annotations

import ipaddress
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from felix_py.ipam import schema
from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.ipam.schema import MODULUS, digest, lease_of, row_of
from felix_py.layout import interface_name
from felix_py.records import Elsewhere, Lease
from policy.model import Family

_INSERT = "INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LOCK_WAIT = 5.0
"""Seconds to wait for an agent that is just stopping."""

_UNREADABLE = (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError, MemoryError)
"""Raised by reading a damaged database; MemoryError when a record claims an absurd length."""


class StoreError(Exception):
    """The store cannot be opened; the message says what to do."""


class StoreDamaged(StoreError):
    """The file's content is not what was written; the file was not changed."""


class AllocationError(Exception):
    """No lease was made and nothing has changed."""


class PoolExhausted(AllocationError):
    """Every address of a family is taken."""


class AddressUnavailable(AllocationError):
    """A requested address is taken, outside the pools, or used by something else on this node."""


class AlreadyLeased(AllocationError):
    """The interface has a lease already."""


Lookup = Callable[[Family, int, int], Elsewhere | None]
"""Returns the other user (not a pod of this node) of an address in a CIDR of that prefix length, or None."""


def nobody(_family: Family, _number: int, _length: int) -> Elsewhere | None:
    """A :data:`Lookup` that finds no other user."""
    return None


LeaseKey = tuple[str, str]
"""(container, ifname)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The owner of a new lease: container id, interface name in it, CNI network name, and the pod."""

    container: str
    ifname: str
    network: str
    namespace: str
    pod: str
    uid: str = ""

    @property
    def key(self) -> LeaseKey:
        return (self.container, self.ifname)


class AddressStore:
    """Leases of this node. One thread at a time.

    A damaged file is never repaired, moved or emptied here: without the leases, addresses of running pods would
    be given out twice.
    """

    def __init__(self, path: Path, elsewhere: Lookup = nobody) -> None:
        """Open or create the store. ``elsewhere`` is asked before an address is given out.

        Raises:
            StoreDamaged: the content is not what was written.
            StoreError: in use by another agent, made by a newer felix-py, or not accessible.
        """
        self._path = path
        self._leases: dict[LeaseKey, Lease] = {}
        self._used: dict[Family, dict[int, LeaseKey]] = {family: {} for family in Family}
        self._cursors: dict[str, int] = {}
        self._boot = ""
        self._digest = 0
        self._fd = -1
        self._newest = 0.0
        self._elsewhere = elsewhere
        self.skipped: dict[str, Elsewhere] = {}
        """Other users of addresses that were passed over, by :attr:`Elsewhere.what`; a reader may clear it."""
        self.closed: frozenset[str] = frozenset()
        """CIDRs out of which nothing is given: see :meth:`close_empty`."""
        self._grouped = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if fault := schema.header_fault(path):
                raise _damaged(path, fault)
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the address store {path}: {error}") from error
        try:
            self._open()
        except BaseException as error:
            self.close()
            if isinstance(error, _UNREADABLE):
                raise _explain(path, error) from error
            raise

    def _open(self) -> None:
        # Exclusive: queries are answered from memory, so a second writer would give addresses out twice.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > schema.VERSION:
            raise StoreError(
                f"the address store {self._path} was made by a newer felix-py: install that one again"
            )
        checked = [row[0] for row in self._db.execute("PRAGMA quick_check(1)")]
        if checked != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(map(str, checked)))
        if version < schema.VERSION:
            schema.make_tables(self._db, version)
        self._db.execute("COMMIT")
        # PERSIST keeps the journal's size between commits: on a full disk a lease can still be released.
        self._db.execute("PRAGMA journal_mode=PERSIST")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if version < schema.VERSION:
            self._sync()
            schema.sync_folder(self._path.parent)
        self._load()

    def _load(self) -> None:
        """Read the file. The tables are replaced as a whole: :meth:`get` never sees them half read."""
        meta = dict(self._db.execute("SELECT * FROM meta"))
        total = digest("boot", (meta["boot"],)) if meta.keys() == {"boot", "digest"} else -1
        cursors: dict[str, int] = {}
        for row in self._db.execute("SELECT * FROM rest"):
            total += digest("rest", row)
            cursors[row[0]] = address_number(row[1])[1]
        leases: dict[LeaseKey, Lease] = {}
        used: dict[Family, dict[int, LeaseKey]] = {family: {} for family in Family}
        for row in self._db.execute("SELECT * FROM held"):
            total += digest("held", row)
            lease = lease_of(row)
            leases[lease.container, lease.ifname] = lease
            for family, text in lease.addresses.items():
                number = address_number(text)[1]
                if number in used[family]:
                    raise ValueError(f"two leases of {text}")
                used[family][number] = (lease.container, lease.ifname)
            self._newest = max(self._newest, lease.created)
        if f"{total % MODULUS:x}" != meta["digest"]:
            raise ValueError("its content does not match its digest")
        self._leases, self._used, self._cursors = leases, used, cursors
        self._boot, self._digest = meta["boot"], total % MODULUS

    def close(self) -> None:
        """Close the file; idempotent."""
        self._db.close()
        if self._fd >= 0:  # after sqlite: closing any descriptor of the file drops sqlite's lock
            os.close(self._fd)
            self._fd = -1

    @property
    def boot(self) -> str:
        """The boot id (random(4)) that the leases are from; empty if unknown."""
        return self._boot

    def set_boot(self, boot: str) -> None:
        """Store the boot id that all leases are from. Raises sqlite3.Error if the file cannot be written."""
        if boot == self._boot:
            return
        with self.group():
            schema.set_meta(self._db, "boot", boot)
            self._digest += digest("boot", (boot,)) - digest("boot", (self._boot,))
            self._boot = boot

    def touch(self) -> None:
        """Test whether the file can be written: rewrite the boot id. Raises sqlite3.Error if not."""
        with self.group():
            schema.set_meta(self._db, "boot", self._boot)

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
        return self._leases.get((container, ifname))

    def keys(self) -> list[LeaseKey]:
        """The keys of all leases. May be called from any thread."""
        return list(self._leases)

    def of(self, container: str) -> list[Lease]:
        """The leases of one container. May be called from any thread."""
        return [lease for lease in list(self._leases.values()) if lease.container == container]

    def usage(self, cidrs: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Addresses that leases have and that they do not have, by CIDR. May be called from any thread.

        ValueError: a text is not a CIDR.
        """
        found: dict[str, tuple[int, int]] = {}
        for pool in map(Pool.of, cidrs):
            used = sum(number in pool for number in list(self._used[pool.family]))
            found[pool.cidr] = used, pool.last - pool.first + 1 - used
        return found

    def numbers(self, family: Family) -> list[int]:
        """The addresses of one family that leases have, as numbers. May be called from any thread."""
        return list(self._used[family])

    def close_empty(self, cidr: str) -> bool:
        """Give nothing out of a CIDR any more, if no lease is in it; whether that is so. Not stored."""
        if self.usage([cidr])[cidr][0]:
            return False
        self.closed |= {cidr}
        return True

    def reopen(self, *cidrs: str) -> None:
        """Undo :meth:`close_empty`."""
        self.closed -= {*cidrs}

    def all(self) -> tuple[Lease, ...]:
        """Every lease, oldest first."""
        return tuple(sorted(self._leases.values(), key=lambda lease: lease.created))

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
        lease = self._leases.get((container, ifname))
        if lease is None:
            return None
        with self.group():
            self._db.execute("DELETE FROM held WHERE container = ? AND ifname = ?", (container, ifname))
            self._digest -= digest("held", row_of(lease))
            del self._leases[container, ifname]
            for family, text in lease.addresses.items():
                del self._used[family][address_number(text)[1]]
        return lease

    @contextmanager
    def group(self) -> Iterator[None]:
        """One transaction: changes inside share one write to disk, and are rolled back together if it fails.

        An AllocationError changes nothing, so it may be caught inside; any other error must leave the block.
        """
        if self._grouped:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        self._grouped = True
        try:
            before, changes = self._digest, self._db.total_changes
            yield
            if self._digest != before:
                self._digest %= MODULUS
                schema.set_meta(self._db, "digest", f"{self._digest:x}")
            self._db.execute("COMMIT")
            if self._db.total_changes != changes:
                self._sync()
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._load()
            raise
        finally:
            self._grouped = False

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise sqlite3.OperationalError(f"cannot write to disk: {error.strerror}") from error

    def _check_new(self, claim: Claim) -> None:
        if claim.key in self._leases:
            raise AlreadyLeased(f"container {claim.container} already has a lease for {claim.ifname}")

    def _free(self, pools: Sequence[Pool]) -> tuple[Pool, int] | None:
        for pool in pools:
            if pool.cidr in self.closed:
                continue
            after, tried = self._cursors.get(pool.cidr), set()
            while (number := pool.next(self._used[pool.family], after)) is not None and number not in tried:
                if (found := self._elsewhere(pool.family, number, pool.length)) is None:
                    return pool, number
                if not found.reserved:
                    self.skipped[found.what] = found
                tried.add(number)
                after = min(found.last, pool.last)
        return None

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
            if (holder := self._used[family].get(number)) is not None:
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
            if (holder := self._used[family].get(number, key)) != key:
                raise AddressUnavailable(f"{lease.addresses[family]} is in use by container {holder[0]}")
        with self.group():
            self.release(*key)
            self._write(lease)

    def _write(self, lease: Lease) -> None:
        row = row_of(lease)
        self._db.execute(_INSERT, row)
        self._digest += digest("held", row)
        self._leases[lease.container, lease.ifname] = lease
        for family, text in lease.addresses.items():
            self._used[family][address_number(text)[1]] = (lease.container, lease.ifname)
        self._newest = max(self._newest, lease.created)

    def _move_cursor(self, cidr: str, last: int) -> None:
        family, before = Pool.of(cidr).family, self._cursors.get(cidr)
        row = (cidr, address_text(family, last))
        self._db.execute("INSERT OR REPLACE INTO rest VALUES (?, ?)", row)
        self._digest += digest("rest", row)
        if before is not None:
            self._digest -= digest("rest", (cidr, address_text(family, before)))
        self._cursors[cidr] = last


def _pools(cidrs: Iterable[str]) -> dict[Family, list[Pool]]:
    pools: dict[Family, list[Pool]] = {}
    for pool in map(Pool.of, cidrs):
        pools.setdefault(pool.family, []).append(pool)
    return pools


def _explain(path: Path, error: BaseException) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(f"the address store {path} is in use: is another felix-py agent running on this node?")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"cannot use the address store {path}: {error}")
    return _damaged(path, error)


def _damaged(path: Path, reason: object) -> StoreDamaged:
    return StoreDamaged(f"the address store {path} is damaged ({reason})")
