"""The durable address store: which pod interface holds which address.

A lease that was returned survives a crash of the agent and of the machine: it is in the database file itself, on
disk, before the call returns. Not in a write-ahead log: a log that is lost or damaged is taken for a shorter
one, and its leases would be gone without a word. Every commit also writes a digest over all rows, which is
compared when the file is opened. All questions are answered from memory; the file is read once, when it is
opened, and held exclusively from then on.

sqlite's rollback journal makes a commit whole for whoever comes after a crash of the agent. Against power loss it
would take two or three waits for the disk a commit. We take one, for the database: power loss in the middle of a
commit may leave a file that does not match its digest, but no pod that any of its leases could be of.

The digest cannot tell a file that is missing, or an older copy of it. Against those there is a second witness:
:mod:`felix_py.cni.recovery`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.layout import interface_name
from felix_py.records import Elsewhere, Lease
from policy.model import Family

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE held (
  container TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL,
  namespace TEXT NOT NULL, pod TEXT NOT NULL, uid TEXT NOT NULL,
  v4 TEXT, v6 TEXT, created REAL NOT NULL,
  PRIMARY KEY (container, ifname)
) STRICT, WITHOUT ROWID;
CREATE TABLE rest (cidr TEXT PRIMARY KEY, last TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID
"""
"""``rest``: the address of each CIDR that was given out last. ``meta``: ``digest`` and ``boot``."""
_FROM_VERSION_1 = """
INSERT INTO held SELECT container, ifname, network, namespace, pod, uid, v4, v6, created FROM lease;
INSERT INTO rest SELECT cidr, last FROM cursor;
DROP TABLE lease;
DROP TABLE cursor
"""
_INSERT = "INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LOCK_WAIT = 5.0
"""Seconds to wait for an agent that is just stopping."""

FORMAT = 18, (1, 2)
"""Place and values of a database's "file format write version": 2 with a write-ahead log (fileformat2.html)."""
_MODULUS = 1 << 128

_UNREADABLE = (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError, MemoryError)
"""What reading a damaged database raises; the last when a record claims an absurd length."""

Row = tuple[str | float | None, ...]


class StoreError(Exception):
    """The store cannot be opened; the message says what to do."""


class StoreDamaged(StoreError):
    """The file does not hold what was written; it was left as it is."""


class AllocationError(Exception):
    """No lease was made and nothing has changed."""


class PoolExhausted(AllocationError):
    """Every address of a family is taken."""


class AddressUnavailable(AllocationError):
    """A requested address is taken, outside the pools, or used by something else on this node."""


class AlreadyLeased(AllocationError):
    """The interface has a lease already."""


Lookup = Callable[[Family, int, int], Elsewhere | None]
"""Whether something else than a pod of ours uses an address of a CIDR of that prefix length."""


def nobody(_family: Family, _number: int, _length: int) -> Elsewhere | None:
    """A :data:`Lookup` that knows of no other users."""
    return None


LeaseKey = tuple[str, str]
"""(container, ifname)."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks for addresses: container id, interface name in it, CNI network name, and the pod."""

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
    """Leases of this node. One thread at a time; a lease's key is (container, ifname).

    A damaged file is never repaired, moved or emptied here: without the leases, addresses of running pods
    would be given away a second time.
    """

    def __init__(self, path: Path, elsewhere: Lookup = nobody) -> None:
        """Open or create the store. ``elsewhere`` is asked before an address is given out.

        Raises:
            StoreDamaged: it does not hold what was written.
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
        """What was not given out for that, by :attr:`Elsewhere.what`; whoever reads it may clear it."""
        self._grouped = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_header()
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

    def _check_header(self) -> None:
        """What sqlite does not call damage: an emptied file, and one of a later format, which it only reads."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:  # before sqlite locks it: closing it later would drop the lock
            header = file.read(FORMAT[0] + 1)
        log = self._path.with_name(self._path.name + "-wal")  # of version 1, which may hold everything
        if not header and not (log.exists() and log.stat().st_size):
            raise _damaged(self._path, "it is empty")
        if header[FORMAT[0] :] and header[FORMAT[0]] not in FORMAT[1]:
            raise _damaged(self._path, "its header is wrong")

    def _open(self) -> None:
        # Exclusive: the answers come from memory, so a second writer would give addresses out twice.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _SCHEMA_VERSION:
            raise StoreError(
                f"the address store {self._path} was made by a newer felix-py: install that one again"
            )
        checked = [row[0] for row in self._db.execute("PRAGMA quick_check(1)")]
        if checked != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(map(str, checked)))
        if version < _SCHEMA_VERSION:
            self._make_tables(version)
        self._db.execute("COMMIT")
        # Kept at its size between commits: on a full disk a lease can still be given back.
        self._db.execute("PRAGMA journal_mode=PERSIST")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        if version < _SCHEMA_VERSION:
            self._sync()
            _sync_folder(self._path.parent)
        self._load()

    def _make_tables(self, version: int) -> None:
        for statement in (_SCHEMA + (";" + _FROM_VERSION_1 if version else "")).split(";"):
            self._db.execute(statement)
        digest = 0
        for table in ("held", "rest"):
            for row in self._db.execute(f"SELECT * FROM {table}"):  # noqa: S608 - one of these two
                digest += _digest(table, row)
        self._set("boot", "")
        self._set("digest", f"{(digest + _digest('boot', ('',))) % _MODULUS:x}")
        self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def _set(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _load(self) -> None:
        """Read everything anew. The tables are swapped in whole: :meth:`get` never sees them half read."""
        meta = dict(self._db.execute("SELECT * FROM meta"))
        digest = _digest("boot", (meta["boot"],)) if meta.keys() == {"boot", "digest"} else -1
        cursors: dict[str, int] = {}
        for row in self._db.execute("SELECT * FROM rest"):
            digest += _digest("rest", row)
            cursors[row[0]] = address_number(row[1])[1]
        leases: dict[LeaseKey, Lease] = {}
        used: dict[Family, dict[int, LeaseKey]] = {family: {} for family in Family}
        for row in self._db.execute("SELECT * FROM held"):
            digest += _digest("held", row)
            lease = _lease(row)
            leases[lease.container, lease.ifname] = lease
            for family, text in lease.addresses.items():
                number = address_number(text)[1]
                if number in used[family]:
                    raise ValueError(f"two leases of {text}")
                used[family][number] = (lease.container, lease.ifname)
            self._newest = max(self._newest, lease.created)
        if f"{digest % _MODULUS:x}" != meta["digest"]:
            raise ValueError("its content does not match its digest")
        self._leases, self._used, self._cursors = leases, used, cursors
        self._boot, self._digest = meta["boot"], digest % _MODULUS

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._db.close()
        if self._fd >= 0:  # not before: closing any descriptor of the file drops sqlite's lock
            os.close(self._fd)
            self._fd = -1

    @property
    def boot(self) -> str:
        """The boot id of the machine that the leases are from; empty: not known."""
        return self._boot

    def set_boot(self, boot: str) -> None:
        """Note that all leases are from this boot.

        Raises:
            sqlite3.Error: the file could not be written.
        """
        if boot == self._boot:
            return
        with self.group():
            self._set("boot", boot)
            self._digest += _digest("boot", (boot,)) - _digest("boot", (self._boot,))
            self._boot = boot

    def touch(self) -> None:
        """Write what is there already, to see whether that can be done.

        Raises:
            sqlite3.Error: it cannot.
        """
        with self.group():
            self._set("boot", self._boot)

    def no_longer(self, found: Iterable[Elsewhere]) -> list[Elsewhere]:
        """Which of these something else does not use any more."""
        gone = []
        for earlier in found:
            family = Family(ipaddress.ip_network(earlier.what).version)
            now = self._elsewhere(family, earlier.last, 0)
            if now is None or now.what != earlier.what:
                gone.append(earlier)
        return gone

    def used_elsewhere(self, addresses: Iterable[str]) -> dict[str, Elsewhere]:
        """Which of these addresses something else uses as well; their own routes do not count."""
        asked = {address: address_number(address) for address in addresses}
        looked = {address: self._elsewhere(family, n, family.bits) for address, (family, n) in asked.items()}
        return {address: found for address, found in looked.items() if found is not None}

    def get(self, container: str, ifname: str) -> Lease | None:
        """The lease of one interface. May be called from any thread."""
        return self._leases.get((container, ifname))

    def keys(self) -> list[LeaseKey]:
        """The keys of all leases. May be called from any thread."""
        return list(self._leases)

    def of(self, container: str) -> list[Lease]:
        """The leases of one container. May be called from any thread."""
        return [lease for lease in list(self._leases.values()) if lease.container == container]

    def all(self) -> tuple[Lease, ...]:
        """Every lease, oldest first."""
        return tuple(sorted(self._leases.values(), key=lambda lease: lease.created))

    def full(self, cidrs: Iterable[str]) -> tuple[Family, ...]:
        """Families of which ``cidrs`` has pools, but no free address."""
        pools = _pools(cidrs)
        return tuple(f for f in pools if self._free(pools[f]) is None)

    def allocate(self, claim: Claim, cidrs: Sequence[str], requested: Iterable[str] = ()) -> Lease:
        """Lease one address for each family that ``cidrs`` has, from the first of its CIDRs with a free one.

        ``requested`` are addresses to use instead, at most one a family, inside ``cidrs``. Leases from CIDRs
        that are not listed any more stay valid. On disk when it returns (inside :meth:`group`: when that
        ends).

        Raises:
            AllocationError: nothing was leased; its kinds say why.
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
        """Note addresses that somebody else (another IPAM plugin) gave to the claim, at most one a family.

        Raises:
            AllocationError: another interface holds one of them, or two are of one family.
            ValueError: a text is not an address.
            sqlite3.Error: the file could not be written; nothing was noted.
        """
        self._check_new(claim)
        return self._insert(claim, self._requested(addresses, None), {})

    def release(self, container: str, ifname: str) -> Lease | None:
        """Give a lease back; returns it, or None when there is none.

        Raises:
            sqlite3.Error: the file could not be written; the lease stays.
        """
        lease = self._leases.get((container, ifname))
        if lease is None:
            return None
        with self.group():
            self._db.execute("DELETE FROM held WHERE container = ? AND ifname = ?", (container, ifname))
            self._digest -= _digest("held", _row(lease))
            del self._leases[container, ifname]
            for family, text in lease.addresses.items():
                del self._used[family][address_number(text)[1]]
        return lease

    @contextmanager
    def group(self) -> Iterator[None]:
        """Everything inside shares one write to disk, and is undone together when that fails.

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
                self._digest %= _MODULUS
                self._set("digest", f"{self._digest:x}")
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
            after, tried = self._cursors.get(pool.cidr), set()
            while (number := pool.next(self._used[pool.family], after)) is not None and number not in tried:
                if (found := self._elsewhere(pool.family, number, pool.length)) is None:
                    return pool, number
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
            if pools is not None and not any(number in pool for pool in pools.get(family, ())):
                raise AddressUnavailable(f"{text} is not a pod address of the node's pod CIDRs")
            if (holder := self._used[family].get(number)) is not None:
                raise AddressUnavailable(f"{text} is in use by container {holder[0]}")
            length = next((p.length for p in (pools or {}).get(family, ()) if number in p), int(family.bits))
            if found := self._elsewhere(family, number, length):
                raise AddressUnavailable(f"{text} cannot be a pod's: {found.what} is {found.how}")
            wanted[family] = number
        return wanted

    def _insert(self, claim: Claim, numbers: Mapping[Family, int], cursors: Mapping[str, int]) -> Lease:
        # Strictly increasing even when the clock steps back: the newest lease of a pod is its endpoint.
        created = max(time.time(), self._newest + 1e-6)
        lease = Lease(
            claim.container,
            claim.ifname,
            claim.network,
            claim.namespace,
            claim.pod,
            claim.uid,
            interface_name(claim.container, claim.ifname),
            {family: address_text(family, numbers[family]) for family in Family if family in numbers},
            created,
        )
        with self.group():
            self._write(lease)
            for cidr, last in cursors.items():
                self._move_cursor(cidr, last)
        return lease

    def adopt(self, lease: Lease) -> None:
        """Take up a lease that is known from elsewhere, in place of an older one of its interface.

        Raises:
            AddressUnavailable: another interface holds one of its addresses; nothing has changed.
            ValueError: an address is none.
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
        row = _row(lease)
        self._db.execute(_INSERT, row)
        self._digest += _digest("held", row)
        self._leases[lease.container, lease.ifname] = lease
        for family, text in lease.addresses.items():
            self._used[family][address_number(text)[1]] = (lease.container, lease.ifname)
        self._newest = max(self._newest, lease.created)

    def _move_cursor(self, cidr: str, last: int) -> None:
        family, before = Pool.of(cidr).family, self._cursors.get(cidr)
        row = (cidr, address_text(family, last))
        self._db.execute("INSERT OR REPLACE INTO rest VALUES (?, ?)", row)
        self._digest += _digest("rest", row)
        if before is not None:
            self._digest -= _digest("rest", (cidr, address_text(family, before)))
        self._cursors[cidr] = last


def _lease(row: Row) -> Lease:
    container, ifname, network, namespace, pod, uid, v4, v6, created = row
    addresses = {family: a for family, a in ((Family.V4, v4), (Family.V6, v6)) if a is not None}
    interface = interface_name(str(container), str(ifname))
    return Lease(container, ifname, network, namespace, pod, uid, interface, addresses, created)  # type: ignore[arg-type]


def _row(lease: Lease) -> Row:
    """The row of ``held``."""
    v4, v6 = lease.addresses.get(Family.V4), lease.addresses.get(Family.V6)
    who = (lease.container, lease.ifname, lease.network, lease.namespace, lease.pod, lease.uid)
    return (*who, v4, v6, lease.created)


def _digest(table: str, row: Row) -> int:
    """A row's part in the digest, the sum of all: a change costs what changes, and order does not count."""
    return int.from_bytes(hashlib.blake2b(json.dumps([table, *row]).encode(), digest_size=16).digest(), "big")


def _pools(cidrs: Iterable[str]) -> dict[Family, list[Pool]]:
    pools: dict[Family, list[Pool]] = {}
    for pool in map(Pool.of, cidrs):
        pools.setdefault(pool.family, []).append(pool)
    return pools


def _sync_folder(folder: Path) -> None:
    """Have the new file's name on disk, not only its content."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _explain(path: Path, error: BaseException) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(f"the address store {path} is in use: is another felix-py agent running on this node?")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"cannot use the address store {path}: {error}")
    return _damaged(path, error)


def _damaged(path: Path, reason: object) -> StoreDamaged:
    return StoreDamaged(f"the address store {path} is damaged ({reason})")
