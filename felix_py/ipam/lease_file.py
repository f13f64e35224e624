"""The database file of the address store: opened exclusively, read as a whole, one flush for each commit.

A write-ahead log is not used: sqlite takes a lost or damaged log for a shorter one and drops its leases without
an error. Every commit also writes a digest over all rows, which is compared when the file is read.

sqlite's rollback journal makes a commit atomic across a crash of the agent. Across power loss it would need two
or three disk flushes a commit. There is one, of the database: power loss during a commit may leave a file that
does not match its digest, but then no pod that a lease could belong to is running either.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from felix_py.ipam import schema
from felix_py.ipam.claims import LeaseKey
from felix_py.ipam.errors import UNREADABLE, StoreError, damaged, explained
from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.ipam.schema import MODULUS, digest, lease_of, row_of
from felix_py.records import Lease
from policy.model import Family

_INSERT = "INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_LOCK_WAIT = 5.0
"""Seconds to wait for an agent that is just stopping."""


@dataclass(slots=True)
class Content:
    """What the file holds. ``used``: address -> the lease's key; ``cursors``: the address of each CIDR that was
    given out last; ``boot``: the boot id (random(4)) that the leases are from, or empty."""

    leases: dict[LeaseKey, Lease] = field(default_factory=dict)
    used: dict[Family, dict[int, LeaseKey]] = field(default_factory=lambda: {family: {} for family in Family})
    cursors: dict[str, int] = field(default_factory=dict)
    boot: str = ""

    def copy(self) -> Content:
        """An independent copy."""
        used = {family: dict(held) for family, held in self.used.items()}
        return Content(dict(self.leases), used, dict(self.cursors), self.boot)

    def add(self, lease: Lease) -> None:
        """Take a lease in. ValueError: another one has its address, or that is none."""
        self.leases[lease.container, lease.ifname] = lease
        for family, text in lease.addresses.items():
            number = address_number(text)[1]
            if number in self.used[family]:
                raise ValueError(f"two leases of {text}")
            self.used[family][number] = (lease.container, lease.ifname)


class LeaseFile:
    """One thread at a time. A damaged file is never repaired, moved or emptied here."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            StoreDamaged: the content is not what was written.
            StoreError: in use by another agent, made by a newer felix-py, or not accessible.
        """
        self._path = path
        self._digest = 0
        self._fd = -1
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if fault := schema.header_fault(path):
                raise damaged(path, fault)
            self._db = sqlite3.connect(path, timeout=_LOCK_WAIT, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the address store {path}: {error}") from error
        try:
            self._open()
            self.content = self._read()
            """As the file was when it was opened."""
        except BaseException as error:
            self.close()
            if isinstance(error, UNREADABLE):
                raise explained(path, error) from error
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

    def _read(self) -> Content:
        meta = dict(self._db.execute("SELECT * FROM meta"))
        total = digest("boot", (meta["boot"],)) if meta.keys() == {"boot", "digest"} else -1
        found = Content(boot=meta["boot"])
        for row in self._db.execute("SELECT * FROM rest"):
            total += digest("rest", row)
            found.cursors[row[0]] = address_number(row[1])[1]
        for row in self._db.execute("SELECT * FROM held"):
            total += digest("held", row)
            found.add(lease_of(row))
        if f"{total % MODULUS:x}" != meta["digest"]:
            raise ValueError("its content does not match its digest")
        self._digest = total % MODULUS
        return found

    def read_again(self) -> Content:
        """Undo what a failed transaction has left, and read the file.

        Raises sqlite3.Error: that cannot be done, or it is damaged.
        """
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        try:
            return self._read()
        except sqlite3.Error:
            raise
        except UNREADABLE as error:
            raise sqlite3.DatabaseError(str(error)) from error

    def close(self) -> None:
        """Close the file; idempotent."""
        self._db.close()
        if self._fd >= 0:  # after sqlite: closing any descriptor of the file drops sqlite's lock
            os.close(self._fd)
            self._fd = -1

    @contextmanager
    def transaction(self, committed: Callable[[], None]) -> Iterator[None]:
        """Changes inside are on disk together when it ends. ``committed`` is called once a crash of the agent
        cannot lose them any more, but power loss can.

        If it raises, sqlite3.Error too, :meth:`read_again` tells what the file holds.
        """
        self._db.execute("BEGIN IMMEDIATE")
        before, changes = self._digest, self._db.total_changes
        yield
        if self._digest != before:
            self._digest %= MODULUS
            schema.set_meta(self._db, "digest", f"{self._digest:x}")
        self._db.execute("COMMIT")
        committed()
        if self._db.total_changes != changes:
            self._sync()

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise sqlite3.OperationalError(f"cannot write to disk: {error.strerror}") from error

    # --- changes, inside a transaction -----------------------------------------------------------------

    def insert(self, lease: Lease) -> None:
        row = row_of(lease)
        self._db.execute(_INSERT, row)
        self._digest += digest("held", row)

    def delete(self, lease: Lease) -> None:
        self._db.execute("DELETE FROM held WHERE container = ? AND ifname = ?", (lease.container, lease.ifname))
        self._digest -= digest("held", row_of(lease))

    def move_cursor(self, cidr: str, last: int, before: int | None) -> None:
        """``last``: the address that is given out, ``before``: the one that was."""
        family = Pool.of(cidr).family
        row = (cidr, address_text(family, last))
        self._db.execute("INSERT OR REPLACE INTO rest VALUES (?, ?)", row)
        self._digest += digest("rest", row)
        if before is not None:
            self._digest -= digest("rest", (cidr, address_text(family, before)))

    def set_boot(self, boot: str, before: str) -> None:
        schema.set_meta(self._db, "boot", boot)
        self._digest += digest("boot", (boot,)) - digest("boot", (before,))
