"""The history of leases: a text file beside the address store, bounded, one JSON object a line.

It says who had an address when, and how long a released one has rested. It is no part of the store: it is written
after a commit and not flushed, so it costs no pod time, and a full disk or a damaged line loses nothing but
history. kill -9 loses no line; power loss may.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from felix_py import log
from felix_py.records import Lease

MOST_BYTES = 512 * 1024
"""Of one file. When it is full, it becomes the older one of two: 2,000 entries are kept at least."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One lease that was made or released.

    ``time``: seconds since the epoch, for people. ``at``: seconds since the boot that has the id ``boot``.
    """

    what: Literal["leased", "released"]
    time: float
    at: float
    boot: str
    container: str
    ifname: str
    network: str
    namespace: str
    pod: str
    uid: str
    addresses: tuple[str, ...]


def since_boot() -> float:
    """Seconds since the machine's boot, with those in which it was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def history_of(store: Path) -> Path:
    """The history's file beside a store."""
    return store.with_name(store.name + ".history")


class History:
    """Appends to the file. Nothing raises: without history, leases are as good as with it."""

    def __init__(self, path: Path, boot: str) -> None:
        """``boot``: this boot's id."""
        self._path = path
        self._boot = boot
        self._unended = _is_unended(path)
        self._failed = False

    def entry(self, what: Literal["leased", "released"], lease: Lease) -> Entry:
        """What has happened to a lease now."""
        return Entry(
            what=what,
            time=time.time(),
            at=since_boot(),
            boot=self._boot,
            container=lease.container,
            ifname=lease.ifname,
            network=lease.network,
            namespace=lease.namespace,
            pod=lease.pod,
            uid=lease.uid,
            addresses=tuple(lease.addresses.values()),
        )

    def note(self, entries: Iterable[Entry]) -> None:
        """Append entries. What cannot be written is lost, and said once."""
        data = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)
        try:
            self._append(b"\n" * self._unended + data)
        except OSError as error:
            if not self._failed:
                log.get("cni").warning("cannot write the history of leases", reason=str(error))
            self._failed = True
        else:
            self._failed = False

    def _append(self, data: bytes) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size + len(data) > MOST_BYTES:
                self._path.replace(_older(self._path))
                os.close(fd)
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._unended = True  # if only a part can be written
            self._unended = os.write(fd, data) != len(data)
        finally:
            os.close(fd)

    def releases(self) -> dict[str, float | None]:
        """When each address was released, in seconds since this boot; None if it was leased last.

        Of an earlier boot's release no more is certain than that it was before this boot: 0.
        """
        found: dict[str, float | None] = {}
        for entry in read_history(self._path):
            at = None if entry.what == "leased" else entry.at if entry.boot == self._boot else 0.0
            found.update(dict.fromkeys(entry.addresses, at))
        return found


def read_history(path: Path) -> Iterator[Entry]:
    """The entries of a history, oldest first, also beside an agent. What is no entry is passed over."""
    for file in (_older(path), path):
        try:
            lines = file.read_bytes().splitlines()
        except OSError:
            continue
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=Entry)
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _is_unended(path: Path) -> bool:
    """Whether the last line is torn."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # missing or empty
        return False
