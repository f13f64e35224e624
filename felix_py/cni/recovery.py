"""Recovery of leases at the agent's start: the address store is compared with the host interfaces.

The store alone cannot detect that it is missing, or replaced by an older copy. But each host interface is
labelled with its lease (:mod:`felix_py.dataplane.link_label`), and exists as long as an address is in use. So:

* A lease on which both agree is valid. An interface without label (of an older version, or removed) gets one.
* A lease that only an interface has is put back into the store.
* A damaged store is set aside and rebuilt from the interfaces.
* An interface without lease and label could hold any address. If leases are known to be lost, the agent does not
  start, and says what to do; else a notice is given, and nothing passes through the interface. (An interface that
  is down was being made when the agent was killed: no pod has its address.)

A lease without interface is kept for its DEL, unless the machine has rebooted: no runtime may remember it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from felix_py import log
from felix_py.dataplane.link_label import link_label
from felix_py.dataplane.links import HostEnd, Links
from felix_py.ipam.history import History, history_of
from felix_py.ipam.store import AddressStore, AddressUnavailable, Lookup, StoreDamaged, StoreError, nobody
from felix_py.notices import NoticeKind
from felix_py.records import Lease

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FILES = ("", "-journal", "-wal", "-shm")
"""Suffixes of sqlite's files of a database; the last two in version 1 of the store."""

Say = Callable[[NoticeKind, str, str], None]
"""As :meth:`felix_py.notices.Notices.say`."""


class Recovered(NamedTuple):
    """The open store, and the leases whose interface exists, oldest first: those to enforce."""

    store: AddressStore
    alive: tuple[Lease, ...]


def boot_id() -> str:
    """The kernel's id of this boot (random(4)), which unlike a clock cannot go back."""
    return _BOOT_ID.read_text().strip()


def recover(path: Path, links: Links, say: Say, boot: str = "", elsewhere: Lookup = nobody) -> Recovered:
    """Open the store at ``path`` and bring it in line with the interfaces.

    ``boot``: see :func:`boot_id`; ``elsewhere``: see :class:`AddressStore`.

    Raises:
        StoreError: the leases are lost and cannot be rebuilt; or the store cannot be opened.
        OSError: the kernel does not answer, or a damaged store cannot be set aside.
    """
    ends, boot = links.host_ends(), boot or boot_id()
    open_store = partial(AddressStore, path, elsewhere, History(history_of(path), boot))
    store, lost = _open(path, ends, say, open_store)
    try:
        recovery = _Recovery(store, links, path, say)
        return Recovered(store, recovery.run(ends, lost, boot))
    except BaseException as error:
        store.close()
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"cannot write the address store {path}: {error}") from error
        raise


def _open(
    path: Path, ends: Sequence[HostEnd], say: Say, open_store: Callable[[], AddressStore]
) -> tuple[AddressStore, str]:
    """The store, and why all its leases are lost, or empty if there is no sign of that."""
    nameless = [end.name for end in ends if end.lease is None and end.up]
    missing = f"the address store {path} is missing"
    lost = "" if any(path.with_name(path.name + suffix).exists() for suffix in _FILES) or not ends else missing
    if lost and nameless:
        raise StoreError(_refusal(lost, nameless, path))
    try:
        return open_store(), lost
    except StoreDamaged as error:
        if nameless:
            raise StoreError(_refusal(str(error), nameless, path)) from error
        aside = _set_aside(path)
        source = f"from the interfaces of {len(ends)} pods" if ends else "empty, as no pod has an interface"
        text = f"{error}, by a power failure or a fault of the disk: it was set aside as {aside.name}"
        text = f"{text} and made anew {source}; look after the disk, and delete that file"
        say(NoticeKind.LEASES_REBUILT, str(path), text)
        return open_store(), str(error)


def _set_aside(path: Path) -> Path:
    """Rename the database with its journals; returns the new name of the database."""
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    for suffix in reversed(_FILES):  # sqlite would apply a journal left behind to the new database
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _refusal(why: str, nameless: Sequence[str], path: Path) -> str:
    shown = ", ".join(sorted(nameless)[:5]) + (f" and {len(nameless) - 5} more" if len(nameless) > 5 else "")
    return (
        f"{why}, and these interfaces of pods do not tell which addresses they hold: {shown}. Nothing was "
        f"changed. Restore {path} from a backup; or drain the node, so that no pod holds an address, delete what "
        f"is left of these interfaces (ip link del), move {path} away if it is there, and start again"
    )


class _Recovery(Struct, frozen=True):
    store: AddressStore
    links: Links
    path: Path
    say: Say

    def run(self, ends: Sequence[HostEnd], lost: str, boot: str) -> tuple[Lease, ...]:
        strangers, unknown, alive = [], [], set()
        leases = {lease.interface: lease for lease in self.store.all()}
        for end in ends:
            lease = leases.get(end.lease.interface if end.lease else end.name)
            if end.lease is None and lease is None:
                strangers.append(end)
            elif end.lease is None or (lease is not None and _same(end.lease, lease)):
                assert lease is not None
                self._label(end, lease)
                alive.add(lease.interface)
            else:
                unknown.append(end)
        self._check_strangers(strangers, lost)
        present = alive | {end.lease.interface for end in unknown if end.lease}
        with self.store.group():
            self._release_old(boot, present)
            adopted = self._adopt(unknown, alive)
            self.store.set_boot(boot)
        # One without a route was being made when the agent was killed, and its lease being written.
        connected = {end.lease.interface for end in unknown if end.lease and end.routed}
        self._tell(sum(bool(lost) or lease.interface in connected for lease in adopted), lost)
        alive |= {lease.interface for lease in adopted}
        self._name_back([end for end in ends if end.lease and end.lease.interface in alive])
        return tuple(lease for lease in self.store.all() if lease.interface in alive)

    def _tell(self, adopted: int, lost: str) -> None:
        if not lost and adopted:
            text = (
                f"the address store {self.path} was older than the pods' interfaces: {adopted} leases were taken "
                f"from these; was it restored from a backup, or its disk replaced?"
            )
        elif lost.endswith("missing"):
            text = f"{lost}: it was made anew from the interfaces of {adopted} pods; is its folder kept?"
        else:
            return
        self.say(NoticeKind.LEASES_REBUILT, str(self.path), text)

    def _stray(self, interface: str, text: str) -> None:
        self.say(NoticeKind.STRAY_INTERFACE, interface, text)

    def _label(self, end: HostEnd, lease: Lease) -> None:
        if end.lease is None and (label := link_label(lease)):
            with suppress(OSError):  # removed meanwhile, or Plugin.look() repeats it
                self.links.label(end.index, label)

    def _check_strangers(self, strangers: Sequence[HostEnd], lost: str) -> None:
        """Interfaces without lease and label. One with a route had a lease when the agent last ran."""
        known = [end.name for end in strangers if end.up and (lost or end.routed)]
        if known:
            why = lost or f"leases are missing in the address store {self.path}"
            raise StoreError(_refusal(why, known, self.path))
        for end in strangers:
            text = (
                f"the interface {end.name} is of no pod that is known here, and nothing passes through it: "
                f"delete it (ip link del {end.name}), and the pod behind it, if there is one"
            )
            self._stray(end.name, text)

    def _release_old(self, boot: str, present: set[str]) -> None:
        if self.store.boot in ("", boot):
            return
        for lease in self.store.all():
            if lease.interface not in present:
                self.store.release(lease.container, lease.ifname)
                log.get("cni").info("released a lease from before the reboot", **about(lease))

    def _adopt(self, unknown: Sequence[HostEnd], alive: set[str]) -> list[Lease]:
        """Put the leases of labels into the store; of two that claim one address the newest wins.

        ``alive``: interfaces whose leases are valid.
        """
        adopted: list[Lease] = []
        labelled = [end.lease for end in unknown if end.lease]
        for lease in sorted(labelled, key=lambda lease: lease.created, reverse=True):
            self._make_way(lease, alive | {one.interface for one in adopted})
            try:
                self.store.adopt(lease)
            except AddressUnavailable as error:
                text = (
                    f"the interface {lease.interface} of {lease.owner_text} has an address that "
                    f"was given to another pod ({error}), and nothing passes through it: delete the pod"
                )
                self._stray(lease.interface, text)
                continue
            adopted.append(lease)
            log.get("cni").warning("took a lease from its interface's label", **about(lease))
        return adopted

    def _make_way(self, lease: Lease, right: set[str]) -> None:
        """Release older leases of the same addresses: their interface is gone or has another label."""
        addresses = set(lease.addresses.values())
        for other in self.store.all():
            if other.interface not in right and not addresses.isdisjoint(other.addresses.values()):
                self.store.release(other.container, other.ifname)

    def _name_back(self, ends: Sequence[HostEnd]) -> None:
        """Restore the names of interfaces: rules, sets and routes refer to them."""
        for end in ends:
            if end.lease and end.name != end.lease.interface:
                try:
                    self.links.rename(end.index, end.lease.interface)
                except OSError as error:
                    wanted = end.lease.interface
                    self._stray(end.name, f"cannot name {end.name} {wanted} again ({error}): delete its pod")
                else:
                    log.get("cni").warning("gave an interface its name back", was=end.name, **about(end.lease))


def _same(label: Lease, lease: Lease) -> bool:
    """Whether both are one lease. ``created`` is ignored: a delegated plugin's or an older version's differs."""
    return (label.namespace, label.pod, label.addresses) == (lease.namespace, lease.pod, lease.addresses)


def about(lease: Lease) -> dict[str, str]:
    """A lease's fields for the log."""
    pod = {"pod": f"{lease.namespace}/{lease.pod}"} if lease.pod else {}
    return {"container": lease.container, **pod, "interface": lease.interface}
