"""Reads the address store while an agent holds it locked."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from felix_py.ipam.schema import FORMAT
from felix_py.ipam.store import AddressStore, StoreDamaged, StoreError
from felix_py.records import Lease

_COPY_TRIES = 20


def read_leases(path: Path) -> tuple[Lease, ...]:
    """Every committed lease, oldest first, also while an agent holds the file; StoreError if it cannot be read.

    The agent holds an exclusive lock, so a copy is read. A commit overwrites pages in place: a copy taken in the
    middle of one does not match its digest, and the copy is repeated. Must not run in the agent's own process:
    closing the file would drop the agent's locks.
    """
    try:
        for last in range(1, _COPY_TRIES + 1):
            content = path.read_bytes()
            if content[FORMAT[0] : FORMAT[0] + 1] == b"\x02":
                raise StoreError(
                    f"the address store {path} was made by an older felix-py: start the new agent first"
                )
            try:
                return _all_of(content, path)
            except StoreDamaged:
                if last == _COPY_TRIES:
                    raise
                time.sleep(0.01)
    except OSError as error:
        raise StoreError(f"cannot read the address store {path}: {error.strerror or error}") from error
    raise AssertionError


def _all_of(content: bytes, original: Path) -> tuple[Lease, ...]:
    with tempfile.TemporaryDirectory(prefix="felix-py-leases-") as folder:
        copy = Path(folder, original.name)
        copy.write_bytes(content)
        try:
            store = AddressStore(copy)
        except StoreError as error:
            raise type(error)(str(error).replace(str(copy), str(original))) from error
        try:
            return store.all()
        finally:
            store.close()
