"""The database file of the address store: header, tables and their migration, rows, digest."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from pathlib import Path

from felix_py.layout import interface_name
from felix_py.records import Lease
from policy.model import Family

VERSION = 2
"""``PRAGMA user_version`` of this schema."""

_TABLES = """
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

FORMAT = 18, (1, 2)
"""Place and values of a database's "file format write version": 2 with a write-ahead log (fileformat2.html)."""
MODULUS = 1 << 128
"""The digest is a sum modulo this."""

Row = tuple[str | float | None, ...]


def header_fault(path: Path) -> str:
    """Damage that sqlite does not report: an empty file, or a later format, which it opens read-only; or ""."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:  # before sqlite locks it: closing it later would drop the lock
        header = file.read(FORMAT[0] + 1)
    log = path.with_name(path.name + "-wal")  # of version 1, which may hold everything
    if not header and not (log.exists() and log.stat().st_size):
        return "it is empty"
    return "its header is wrong" if header[FORMAT[0] :] and header[FORMAT[0]] not in FORMAT[1] else ""


def make_tables(db: sqlite3.Connection, version: int) -> None:
    """Create the tables, with the content of those of ``version`` (0: a new database)."""
    for statement in (_TABLES + (";" + _FROM_VERSION_1 if version else "")).split(";"):
        db.execute(statement)
    total = digest("boot", ("",))
    for table in ("held", "rest"):
        for row in db.execute(f"SELECT * FROM {table}"):  # noqa: S608 - one of these two
            total += digest(table, row)
    set_meta(db, "boot", "")
    set_meta(db, "digest", f"{total % MODULUS:x}")
    db.execute(f"PRAGMA user_version={VERSION}")


def set_meta(db: sqlite3.Connection, key: str, value: str) -> None:
    """Write one row of ``meta``."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def digest(table: str, row: Row) -> int:
    """A row's summand in the digest: a change costs only the changed rows, and their order does not count."""
    return int.from_bytes(hashlib.blake2b(json.dumps([table, *row]).encode(), digest_size=16).digest(), "big")


def row_of(lease: Lease) -> Row:
    """The lease's row in ``held``."""
    v4, v6 = lease.addresses.get(Family.V4), lease.addresses.get(Family.V6)
    owner = (lease.container, lease.ifname, lease.network, lease.namespace, lease.pod, lease.uid)
    return (*owner, v4, v6, lease.created)


def lease_of(row: Row) -> Lease:
    """The lease of a row of ``held``."""
    container, ifname, network, namespace, pod, uid, v4, v6, created = row
    addresses = {family: a for family, a in ((Family.V4, v4), (Family.V6, v6)) if a is not None}
    interface = interface_name(str(container), str(ifname))
    return Lease(container, ifname, network, namespace, pod, uid, interface, addresses, created)  # type: ignore[arg-type]


def sync_folder(folder: Path) -> None:
    """Flush a folder: a new file's name, not only its content, must be on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
