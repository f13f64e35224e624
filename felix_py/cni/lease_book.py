"""Writes of the address store, and what is owed to it while it cannot be written.

A pod must be able to go although the disk is full: its lease is then released as soon as there is room again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeVar

from felix_py.cni.errors import CNIError, Code
from felix_py.cni.workers import Leases
from felix_py.ipam.store import AddressStore, LeaseKey
from felix_py.notices import NoticeKind, Notices
from felix_py.records import Lease

T = TypeVar("T")


class LeaseBook:
    """For one event loop."""

    def __init__(
        self,
        leases: Leases,
        notices: Notices,
        alone: Callable[[str, str], AbstractAsyncContextManager[None]],
    ) -> None:
        """``alone`` keeps other calls for an interface (container, ifname) away."""
        self._leases = leases
        self._notices = notices
        self._alone = alone
        self._owed: dict[LeaseKey, Lease] = {}
        self.unwritten = ""
        """Why the last write failed, or empty."""

    async def write(self, action: Callable[[AddressStore], T], committed: Callable[[T], None] | None = None) -> T:
        """Run ``action`` on the store. ``committed``: see :meth:`Leases.use`.

        Raises:
            CNIError: the store cannot be written.
            AllocationError, ValueError: from ``action``.
        """
        try:
            result = await self._leases.use(action, committed)
        except sqlite3.Error as error:
            self.unwritten = f"the address store cannot be written: {error}"
            text = f"{self.unwritten}; new pods must wait, and addresses of pods that are gone are kept"
            self._notices.say(NoticeKind.LEASES_NOT_WRITTEN, "leases", text)
            raise CNIError(Code.IO, self.unwritten) from error
        if self.unwritten:
            self.unwritten = ""
            self._notices.clear(NoticeKind.LEASES_NOT_WRITTEN, "leases")
        return result

    async def give_back(self, lease: Lease) -> None:
        """Release a lease. If that cannot be written, the lease is kept, and released later."""
        key = (lease.container, lease.ifname)
        try:
            await self.write(lambda store: store.release(*key))
        except CNIError:
            self._owed[key] = lease  # the pod must go all the same
        else:
            self._owed.pop(key, None)

    def owes(self, key: LeaseKey) -> bool:
        """Whether an interface's lease is still to be released."""
        return key in self._owed

    def used_again(self, key: LeaseKey) -> None:
        """An interface has a new lease, which is in use."""
        self._owed.pop(key, None)

    async def catch_up(self) -> str:
        """Repeat failed writes; returns why they still fail, or empty."""
        if self.unwritten or self._owed:  # a later write may have succeeded meanwhile
            with suppress(CNIError):
                await self.write(AddressStore.touch)
                for key, lease in list(self._owed.items()):
                    async with self._alone(*key):
                        if self._owed.get(key) is lease:
                            await self.give_back(lease)
        return self.unwritten
