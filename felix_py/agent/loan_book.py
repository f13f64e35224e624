"""The addresses of its blocks that this node has lent to others: on disk before anybody can know, and until the
borrower has returned them. See :mod:`felix_py.ipam.lending`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar
from uuid import uuid4

from felix_py import log
from felix_py.agent.last_good import Kept
from felix_py.ipam.pool import address_number
from felix_py.ipam.reserved import Reserved
from felix_py.ipam.resources import IPAMBlock, Loan, LoanRequest
from felix_py.ipam.store import AddressStore
from policy.model import Family

T = TypeVar("T")


class Leases(Protocol):
    """The address store, as :class:`felix_py.cni.workers.Leases` has it."""

    async def use(self, action: Callable[[AddressStore], T]) -> T: ...


class LoanBook:
    """On the event loop only."""

    def __init__(self, path: Path, reserved: Reserved, leases: Leases) -> None:
        """``reserved``, which ``leases`` asks, is told what no pod of this node may have.

        Raises StoreError: the file was made by a newer felix-py.
        """
        self.path = path
        self._file = Kept(path)
        self._reserved = reserved
        self._leases = leases
        self._log = log.get("blocks")
        self._lock = asyncio.Lock()
        fields, problem = self._file.read(alone=True)
        if problem:
            self._log.warning("which addresses are lent is lost but for what the API server says", reason=problem)
        self.loans: tuple[Loan, ...] = tuple(
            Loan(one["address"], one["node"], one["nodeUID"], one["uid"])
            for one in (fields or {}).get("lent", [])
        )
        self.noted: Mapping[str, str] = {
            one["uid"]: one.get("blockVersion", "") for one in (fields or {}).get("lent", [])
        }
        """The uid of a loan -> the resourceVersion that its block had when the loan was noted."""
        self._in_use: set[str] = set()
        self._tell(self.loans)

    def numbers(self, family: Family) -> list[int]:
        """The lent addresses of one family, as numbers."""
        found = (address_number(loan.address) for loan in self.loans)
        return [number for of, number in found if of is family]

    async def set_aside(self, block: IPAMBlock, requests: Sequence[LoanRequest], most: int) -> None:
        """Set free addresses of an own block, as it is seen, aside for those who ask, ``most`` in all.

        Raises:
            OSError: that cannot be written; nothing is set aside.
            sqlite3.Error: the store cannot be used.
        """
        asking = [request for request in requests for _ in range(request.count)][: max(0, most)]

        def take(store: AddressStore) -> tuple[Loan, ...]:
            # In the store's thread: no pod gets one of them in between.
            found = zip(store.spare(block.cidr, len(asking)), asking, strict=False)
            loans = tuple(Loan(address, to.node, to.node_uid, str(uuid4())) for address, to in found)
            self._tell((*self.loans, *loans))
            return loans

        async with self._changing():
            if loans := await self._leases.use(take) if asking else ():
                await self._write((*self.loans, *loans), {loan.uid: block.resource_version for loan in loans})
                self._log.info("lent addresses", loans=[f"{loan.address} to {loan.node}" for loan in loans])

    async def adopt(self, own: Iterable[IPAMBlock]) -> None:
        """Take over loans that own blocks show and this node does not know of: the file was lost.

        Raises sqlite3.Error: the store cannot be used.
        """
        known = {*(loan.uid for loan in self.loans), *self._in_use}
        versions = {loan: block.resource_version for block in own for loan in block.lent if loan.uid not in known}
        unknown = tuple(versions)
        if not unknown:
            return

        def take(store: AddressStore) -> tuple[Loan, ...]:
            used = {(family, number) for family in Family for number in store.numbers(family)}
            loans = tuple(loan for loan in unknown if address_number(loan.address) not in used)
            self._tell((*self.loans, *loans))
            return loans

        async with self._changing():
            loans = await self._leases.use(take)
            noted = {loan.uid: versions[loan] for loan in loans}
            self.loans, self.noted = (*self.loans, *loans), {**self.noted, **noted}
            try:
                await self._write(self.loans)
            except OSError as error:
                # The API server has them for the next start.
                self._log.warning("lent addresses cannot be noted", path=str(self.path), reason=error.strerror)
        for loan in {*unknown}.difference(loans):
            # The end of an old loan is not seen yet; or two pods have the address.
            self._in_use.add(loan.uid)
            self._log.warning("a pod of this node has a lent address", address=loan.address, node=loan.node)

    async def forget(self, ended: Iterable[Loan]) -> None:
        """Give these addresses to pods of this node again. OSError: that cannot be written; they stay lent."""
        uids = {loan.uid for loan in ended}
        async with self._changing():
            await self._write(tuple(loan for loan in self.loans if loan.uid not in uids))

    async def _write(self, loans: tuple[Loan, ...], new: Mapping[str, str] | None = None) -> None:
        versions = {**self.noted, **(new or {})}
        noted = {loan.uid: versions[loan.uid] for loan in loans}
        lent = [loan.fields | {"blockVersion": noted[loan.uid]} for loan in loans]
        await asyncio.to_thread(self._file.write, {"lent": lent})
        self.loans, self.noted = loans, noted

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """One change at a time; what failed is undone."""
        async with self._lock:
            try:
                yield
            finally:
                self._tell(self.loans)

    def _tell(self, loans: Collection[Loan]) -> None:
        self._reserved.lend({loan.address: loan.node for loan in loans})
