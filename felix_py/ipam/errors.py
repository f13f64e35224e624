"""What can be wrong with the address store, and with a request for addresses."""

from __future__ import annotations

import sqlite3
from pathlib import Path

UNREADABLE = (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError, MemoryError)
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


def explained(path: Path, error: BaseException) -> StoreError:
    """Why a store cannot be opened, as its error says."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_BUSY:
        return StoreError(f"the address store {path} is in use: is another felix-py agent running on this node?")
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"cannot use the address store {path}: {error}")
    return damaged(path, error)


def damaged(path: Path, reason: object) -> StoreDamaged:
    """The error for a store that is damaged for some reason."""
    return StoreDamaged(f"the address store {path} is damaged ({reason})")
