"""Addresses that stay with the name of a pod: ``felixpy.io/keep-address``.

What a name keeps is on disk before the pod has started, beside the address store, whose leases end with pods. No
other pod gets a kept address, and the node does not give its block back. The claim ends when a pod of the name
starts without the annotation, when one runs on another node (whose addresses are others), when the namespace is
gone, and after :data:`PATIENCE` without a pod of the name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from felix_py import log
from felix_py.agent.last_good import Kept
from felix_py.cni.network import NetworkError
from felix_py.cni.workers import Leases
from felix_py.ipam.pool import address_number
from felix_py.ipam.reserved import Reserved
from policy.model import Family, Namespace, ObjectKey, Pod

PATIENCE = 7 * 86400.0
"""Seconds without a pod of a name until what it keeps is released; only those in which an agent runs count."""

_NOTED = 3600.0
"""Absence is noted on disk every so many seconds."""


class Keeping:
    """The kept addresses of one node. On the event loop only."""

    def __init__(
        self,
        path: Path,
        reserved: Reserved,
        node_name: str,
        pod_of: Callable[[ObjectKey], Pod | None],
        namespaces: Mapping[ObjectKey, Namespace],
    ) -> None:
        """``reserved`` is told what no other pod may have. ``pod_of``, ``namespaces``: as the API server says.

        Raises StoreError: the file was made by a newer felix-py.
        """
        self._file = Kept(path)
        self._reserved = reserved
        self._node_name = node_name
        self._pod_of = pod_of
        self._namespaces = namespaces
        self._log = log.get("ipam")
        self._lock = asyncio.Lock()
        """One change at a time, so that the file ends as the last one wants it."""
        fields, problem = self._file.read(alone=True)
        if problem:
            self._log.warning("which addresses are kept for pods is lost", reason=problem)
        self._kept: dict[str, tuple[str, ...]] = {}
        self._absent: dict[str, float] = {}
        for owner, found in (fields or {}).items():
            self._kept[owner] = tuple(found["addresses"])
            self._absent[owner] = found["absent"]
        self._tell()

    def of(self, namespace: str, name: str) -> tuple[str, ...]:
        """The addresses that a name keeps."""
        return self._kept.get(f"{namespace}/{name}", ())

    def owner(self, address: str) -> str:
        """namespace/name of the pod that keeps an address, or empty."""
        return next((owner for owner, addresses in self._kept.items() if address in addresses), "")

    def numbers(self, family: Family) -> list[int]:
        """All kept addresses of one family, as numbers."""
        found = (address_number(address) for addresses in self._kept.values() for address in addresses)
        return [number for of, number in found if of is family]

    async def keep(self, namespace: str, name: str, addresses: tuple[str, ...]) -> None:
        """Have a name keep these addresses, and no others; none: release what it keeps.

        Raises:
            NetworkError: that cannot be written; what was kept stays.
        """
        async with self._lock:
            await self._keep(f"{namespace}/{name}", addresses)

    async def _keep(self, owner: str, addresses: tuple[str, ...]) -> None:
        before = dict(self._kept)
        if self._kept.get(owner, ()) == addresses:
            self._absent[owner] = 0.0
            return
        self._kept.pop(owner, None)
        if addresses:
            self._kept[owner] = addresses
        self._absent[owner] = 0.0
        try:
            await self._write()
        except OSError as error:
            self._kept = before
            self._tell()
            raise NetworkError(f"kept addresses cannot be written: {error.strerror}") from error

    async def look(self, seconds: float) -> None:
        """Release what is kept in vain; ``seconds``: since the last look. All pods must be known."""
        async with self._lock:
            await self._look(seconds)

    async def _look(self, seconds: float) -> None:
        before = {owner: absent // _NOTED for owner, absent in self._absent.items()}
        for owner in list(self._kept):
            namespace, _, name = owner.partition("/")
            pod = self._pod_of((namespace, name))
            self._absent[owner] = 0.0 if pod else self._absent.get(owner, 0.0) + seconds
            moved = pod is not None and pod.active and pod.node not in ("", self._node_name)
            if moved or ("", namespace) not in self._namespaces or self._absent[owner] >= PATIENCE:
                self._log.info("released kept addresses", pod=owner, addresses=self._kept.pop(owner))
        self._absent = {owner: self._absent[owner] for owner in self._kept}
        if {owner: absent // _NOTED for owner, absent in self._absent.items()} != before:
            try:
                await self._write()
            except OSError as error:
                self._log.warning("kept addresses cannot be written", reason=error.strerror)

    async def _write(self) -> None:
        self._tell()
        fields: dict[str, Any] = {
            owner: {"addresses": list(addresses), "absent": self._absent.get(owner, 0.0)}
            for owner, addresses in self._kept.items()
        }
        await asyncio.to_thread(self._file.write, fields)

    def _tell(self) -> None:
        self._reserved.keep({address: owner for owner, of in self._kept.items() for address in of})


class LeasedOrKept:
    """The address store as the claims see it: kept addresses hold their blocks as leases do."""

    def __init__(self, leases: Leases, keeping: Keeping) -> None:
        self._leases = leases
        self._keeping = keeping
        self.use = leases.use

    def numbers(self, family: Family) -> list[int]:
        """The addresses of one family that are leased or kept, as numbers, each once."""
        return list({*self._leases.numbers(family), *self._keeping.numbers(family)})
