"""The durable address store: which pod interface holds which address.

A lease that was returned survives a crash of the agent and of the machine: sqlite in WAL mode with
``synchronous=FULL`` has it on disk before the call returns. All questions are answered from memory; the file
is read once, when it is opened, and held exclusively from then on.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.plan.layout import interface_name
from felix_py.records import Lease
from policy.model import Family

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE lease (
  container TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL,
  namespace TEXT NOT NULL, pod TEXT NOT NULL, uid TEXT NOT NULL, interface TEXT NOT NULL UNIQUE,
  v4 TEXT UNIQUE, v6 TEXT UNIQUE, created REAL NOT NULL,
  PRIMARY KEY (container, ifname)
) STRICT;
CREATE TABLE cursor (cidr TEXT PRIMARY KEY, last TEXT NOT NULL) STRICT;
"""
_INSERT = "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LOCK_WAIT = 5.0
"""Seconds to wait for an agent that is just stopping."""

_COPY_TRIES = 20
_WAL_HEADER = 32  # bytes; the log's salts and check sum are among them


class StoreError(Exception):
    """The store cannot be opened; the message says what to do."""


class AllocationError(Exception):
    """No lease was made and nothing has changed."""


class PoolExhausted(AllocationError):
    """Every address of a family is taken."""


class AddressUnavailable(AllocationError):
    """A requested address is taken, or outside the pools."""


class AlreadyLeased(AllocationError):
    """The interface has a lease already."""


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
    would be given away a second time. Opening it fails, again and again, until somebody decides.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the store.

        Raises:
            StoreError: damaged, in use by another agent, made by a newer felix-py, or not accessible.
        """
        self._path = path
        self._leases: dict[LeaseKey, Lease] = {}
        self._used: dict[Family, dict[int, LeaseKey]] = {family: {} for family in Family}
        self._cursors: dict[str, int] = {}
        self._newest = 0.0
        self._grouped = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the address store {path}: {error}") from error
        try:
            self._open()
        except BaseException as error:
            self._db.close()
            if isinstance(error, (sqlite3.Error, ValueError)):
                raise _explain(path, error) from error
            raise

    def _open(self) -> None:
        # Exclusive: the answers come from memory, so a second writer would give addresses out twice.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        self._db.execute("COMMIT")
        if version > _SCHEMA_VERSION:
            raise StoreError(
                f"the address store {self._path} was made by a newer felix-py: install that one again"
            )
        if version == 0:
            _sync_folder(self._path.parent)
        checked = [row[0] for row in self._db.execute("PRAGMA quick_check(1)")]
        if checked != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(map(str, checked)))
        self._load()

    def _load(self) -> None:
        """Read everything anew. The tables are swapped in whole: :meth:`get` never sees them half read."""
        cursors = {cidr: address_number(last)[1] for cidr, last in self._db.execute("SELECT * FROM cursor")}
        leases: dict[LeaseKey, Lease] = {}
        used: dict[Family, dict[int, LeaseKey]] = {family: {} for family in Family}
        for row in self._db.execute("SELECT * FROM lease"):
            container, ifname, network, namespace, pod, uid, interface, v4, v6, created = row
            addresses = {family: a for family, a in ((Family.V4, v4), (Family.V6, v6)) if a is not None}
            leases[container, ifname] = Lease(
                container, ifname, network, namespace, pod, uid, interface, addresses, created
            )
            for family, text in addresses.items():
                used[family][address_number(text)[1]] = (container, ifname)
            self._newest = max(self._newest, created)
        self._leases, self._used, self._cursors = leases, used, cursors

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._db.close()

    def get(self, container: str, ifname: str) -> Lease | None:
        """The lease of one interface. May be called from any thread."""
        return self._leases.get((container, ifname))

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
                cidr_list = ", ".join(pool.cidr for pool in candidates)
                raise PoolExhausted(f"no free address is left in {cidr_list}")
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
            self._db.execute("DELETE FROM lease WHERE container = ? AND ifname = ?", (container, ifname))
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
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._load()
            raise
        finally:
            self._grouped = False

    def _check_new(self, claim: Claim) -> None:
        if claim.key in self._leases:
            raise AlreadyLeased(f"container {claim.container} already has a lease for {claim.ifname}")

    def _free(self, pools: Sequence[Pool]) -> tuple[Pool, int] | None:
        for pool in pools:
            number = pool.next(self._used[pool.family], self._cursors.get(pool.cidr))
            if number is not None:
                return pool, number
        return None

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
        v4, v6 = lease.addresses.get(Family.V4), lease.addresses.get(Family.V6)
        texts = (lease.network, lease.namespace, lease.pod, lease.uid, lease.interface)
        with self.group():
            self._db.execute(_INSERT, (*claim.key, *texts, v4, v6, created))
            for cidr, last in cursors.items():
                text = address_text(Pool.of(cidr).family, last)
                self._db.execute("INSERT OR REPLACE INTO cursor VALUES (?, ?)", (cidr, text))
            self._cursors.update(cursors)
            self._leases[claim.key] = lease
            for family, number in numbers.items():
                self._used[family][number] = claim.key
            self._newest = created
        return lease


def read_leases(path: Path) -> tuple[Lease, ...]:
    """Every lease, oldest first, beside an agent that holds the file: what it has committed so far.

    The agent locks the file for itself, so a copy is read. Commits only append to the write-ahead log, and a
    checkpoint only carries over what the log holds. So the database with a log read after it is one moment's
    state, unless the log was begun anew meanwhile: its header has new salts then
    (https://www.sqlite.org/fileformat2.html#walformat). Not for the agent's own process: closing the file would
    drop its locks.

    Raises:
        StoreError: there is no such file, or it cannot be read.
    """
    wal = path.with_name(path.name + "-wal")
    try:
        for _ in range(_COPY_TRIES):
            header = _log(wal, _WAL_HEADER)
            main = path.read_bytes()
            log = _log(wal)
            if header == log[:_WAL_HEADER] == _log(wal, _WAL_HEADER):
                break
        else:
            raise StoreError(f"the address store {path} keeps changing while it is read")
        with tempfile.TemporaryDirectory(prefix="felix-py-leases-") as folder:
            copy = Path(folder, path.name)
            copy.write_bytes(main)
            copy.with_name(copy.name + "-wal").write_bytes(log)
            return _all_of(copy, path)
    except OSError as error:
        raise StoreError(f"cannot read the address store {path}: {error.strerror or error}") from error


def _log(wal: Path, size: int = -1) -> bytes:
    """The first bytes of a write-ahead log (all of them if `size` is negative); nothing where there is none."""
    try:
        with wal.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return b""


def _all_of(copy: Path, original: Path) -> tuple[Lease, ...]:
    try:
        store = AddressStore(copy)
    except StoreError as error:
        raise StoreError(str(error).replace(str(copy), str(original))) from error
    try:
        return store.all()
    finally:
        store.close()


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


def _explain(path: Path, error: Exception) -> StoreError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(f"the address store {path} is in use: is another felix-py agent running on this node?")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"cannot use the address store {path}: {error}")
    return StoreError(
        f"the address store {path} is damaged ({error}). It was left as it is. Restore it from a backup; or "
        f"drain the node, so that no pod holds an address, move {path} and {path}-wal away and start again"
    )
