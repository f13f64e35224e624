"""Nodes that lend each other addresses, on a server: whatever is lost on the way, each address is one node's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from felix_py.ipam import lending, loans
from felix_py.ipam.resources import LoanRequest
from felix_py.ipam.store import AddressUnavailable, Claim, PoolExhausted, StoreError
from policy.model import Family, Pod
from tests.support.claiming import (
    Node,
    declare,
    lost_after,
    lost_before,
    objects,
    pool_server,
    running,
)
from tests.support.fakeapi import IPAM_BLOCKS, NODES, FakeApi, Json
from tests.support.waiting import until

BLOCK = "10.0.0.0/29"
ASKING = Claim("c", "eth0", "felix", "shop", "c")
ALL = {f"10.0.0.{number}" for number in range(1, 7)}


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with pool_server() as found:
        declare(found, "few", cidr=BLOCK, blockSize=29)
        yield found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing rests before it is given back."""
    monkeypatch.setattr(lending, "REST", 0.0)


@asynccontextmanager
async def owner(server: FakeApi, folder: Path) -> AsyncIterator[Node]:
    """The node that has the only block."""
    async with running(server, folder / "1", strict=False) as node:
        await node.until(lambda: node.claims.blocks)
        node.leases._store.cooldown = 0.0
        yield node


@asynccontextmanager
async def borrower(server: FakeApi, folder: Path) -> AsyncIterator[Node]:
    async with running(server, folder / "2", "n2", strict=False) as node:
        node.leases._store.cooldown = 0.0
        yield node


def block(server: FakeApi) -> Json:
    """The owner's."""
    return next(one for one in objects(server, IPAM_BLOCKS) if one["cidr"] == BLOCK)


def lent(server: FakeApi) -> dict[str, str]:
    """Address -> who has borrowed it, as the server says."""
    return {one["address"]: one["node"] for one in block(server).get("lent", ())}


async def drained(node: Node) -> set[str]:
    """Every address that further pods of a node can get."""
    found: set[str] = set()
    while True:
        try:
            found.add(await node.lease(f"last-{len(found)}"))
        except PoolExhausted:
            return found


async def returned(server: FakeApi, one: Node, two: Node) -> None:
    """What was borrowed has come back, to the last record."""
    two.claims._due.set()
    await one.until(lambda: not lent(server) and not one.book.loans)
    assert await drained(one) == ALL


async def test_a_node_without_a_block_borrows(server: FakeApi, tmp_path: Path) -> None:
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        mine = await one.lease("a")
        before = len(server.requests)
        theirs = await two.lease("b")
        assert lent(server) == {theirs: "n2"}
        assert block(server)["requests"] == []
        writes = [request.method for request in server.requests[before:] if request.method != "GET"]
        assert writes == ["PATCH", "PATCH"]
        assert two.cidrs() == (f"{theirs}/32",)
        # Neither the owner's pods get it, not even one that asks for it,
        with pytest.raises(AddressUnavailable, match=f"{theirs} cannot be a pod's: {theirs} is lent to node n2"):
            await one.leases.use(lambda store: store.allocate(ASKING, [BLOCK], [theirs]))
        # nor is one address lost.
        assert await drained(one) | {mine, theirs} == ALL


async def test_strict_affinity(server: FakeApi, tmp_path: Path) -> None:
    async with owner(server, tmp_path) as one, running(server, tmp_path / "2", "n2") as two:
        nobody_lends = r"every block of IPPool few is claimed, and nodes lend no addresses \(strictAffinity\)"
        with pytest.raises(PoolExhausted, match=nobody_lends):
            await two.lease("b")
        assert "no block is left in few: pods that need a further one wait" in two.told()
        # The owner's word counts as well.
        one.claims.set_strict(True)
        two.claims.set_strict(False)
        with pytest.raises(
            PoolExhausted, match=r"no other node lends an address \(n1 refused, asked \d+ seconds"
        ):
            await two.lease("b")
        assert "no other node lends an address" in two.told()
        assert lent(server) == {}


async def test_what_is_borrowed_comes_back(server: FakeApi, tmp_path: Path, at_once: None) -> None:
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        await two.lease("b")
        await two.release("b")
        two.claims.set_strict(True)  # nothing is borrowed in advance, either
        await returned(server, one, two)
        assert two.cidrs() == ()


async def test_an_own_address_that_is_free_sends_a_borrowed_one_back(
    server: FakeApi, tmp_path: Path, at_once: None
) -> None:
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        await two.lease("b")
        declare(server, "more", cidr="10.1.0.0/29", blockSize=29)
        await two.until(lambda: two.claims.blocks)
        await two.release("b")
        two.claims._due.set()
        await one.until(lambda: not lent(server) and not one.book.loans)
        assert (await two.lease("c")).startswith("10.1.0.")


@pytest.mark.parametrize("fault", [lost_after, lost_before])
async def test_every_write_of_a_loan_is_lost_once(
    server: FakeApi, tmp_path: Path, at_once: None, fault: Any
) -> None:
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        for _ in range(2):  # the request and the loan
            server.fault("patch", fault)
        theirs = await two.lease("b")
        assert lent(server) == {theirs: "n2"} == {loan.address: loan.node for loan in one.book.loans}
        server.fault("patch", fault)
        await two.release("b")
        two.claims.set_strict(True)
        await returned(server, one, two)


async def test_an_owner_that_does_not_answer_is_asked_in_vain(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loans, "PATIENCE", 0.5)
    async with owner(server, tmp_path):
        pass
    async with borrower(server, tmp_path) as two:
        with pytest.raises(PoolExhausted, match=r"\(n1 does not answer, asked \d+ seconds ago\)"):
            await two.lease("b")
        await two.until(lambda: block(server)["requests"] == [])
        # It answers late, or never: another loan is asked for when there is a reason again.
        async with owner(server, tmp_path) as one:
            two.claims._known.loans.forget(BLOCK)
            theirs = await two.lease("b")
            assert lent(server) == {theirs: "n2"}
            assert len(one.book.loans) == 1


async def test_a_node_that_is_gone_is_not_asked(server: FakeApi, tmp_path: Path) -> None:
    async with owner(server, tmp_path):
        pass
    server.delete(NODES, "", "n1")
    async with borrower(server, tmp_path) as two:
        with pytest.raises(PoolExhausted, match="as far as is known, they have no free one"):
            await two.lease("b")
        assert "requests" not in block(server)


async def test_an_owner_that_was_killed_after_it_had_noted_a_loan(
    server: FakeApi, tmp_path: Path, at_once: None
) -> None:
    async with owner(server, tmp_path) as one:
        await one.book.set_aside(one.claims.blocks[0], [LoanRequest(node="n2", node_uid="uid-n2", count=1)], 6)
        (loan,) = one.book.loans
    async with owner(server, tmp_path) as one:
        # An agent that starts gives it to nobody, and tells the server.
        await one.until(lambda: lent(server) == {loan.address: "n2"})
        assert loan.address not in await drained(one)
        async with borrower(server, tmp_path) as two:
            two.claims.set_strict(True)
            await two.until(lambda: not lent(server))
            await one.until(lambda: not one.book.loans)


async def test_an_old_list_makes_nobody_use_an_address_twice(
    server: FakeApi, tmp_path: Path, at_once: None
) -> None:
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        never = server.objects[IPAM_BLOCKS, "", one.claims.blocks[0].name]
        theirs = await two.lease("b")
        while_lent = server.objects[IPAM_BLOCKS, "", one.claims.blocks[0].name]
    # The owner starts with a list of before: what it has lent it gives to nobody.
    server.put(IPAM_BLOCKS, never)
    async with owner(server, tmp_path) as one:
        assert theirs not in await drained(one)
    server.put(IPAM_BLOCKS, while_lent)
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        await two.release("b")
        two.claims.set_strict(True)
        await one.until(lambda: not lent(server) and not one.book.loans)
    # So does the borrower: what it has returned it does not use.
    server.put(IPAM_BLOCKS, while_lent)
    async with borrower(server, tmp_path) as two:
        with pytest.raises(AddressUnavailable):
            await two.leases.use(lambda store: store.allocate(ASKING, [f"{theirs}/32"], [theirs]))
        assert two.cidrs() == ()
        await two.until(lambda: not lent(server))


async def test_a_book_that_is_lost_is_read_from_the_server(server: FakeApi, tmp_path: Path) -> None:
    async with owner(server, tmp_path), borrower(server, tmp_path) as two:
        theirs = await two.lease("b")
    (tmp_path / "1" / "lent-addresses.json").write_text("{")
    async with owner(server, tmp_path) as one:
        assert theirs not in await drained(one)
        assert [loan.address for loan in one.book.loans] == [theirs]


async def test_a_book_of_a_newer_version_is_not_overwritten(server: FakeApi, tmp_path: Path) -> None:
    newer = b'{"version": 2, "sha256": "", "fields": []}'
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "lent-addresses.json").write_bytes(newer)
    with pytest.raises(StoreError, match=r"lent-addresses.json was made by a newer felix-py"):
        async with owner(server, tmp_path):
            pass
    assert (tmp_path / "1" / "lent-addresses.json").read_bytes() == newer


async def test_a_disk_that_is_full_lends_nothing(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loans, "PATIENCE", 0.5)

    def full(_fields: object) -> None:
        raise OSError(28, "No space left on device")

    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        monkeypatch.setattr(one.book._file, "write", full)
        with pytest.raises(PoolExhausted):
            await two.lease("b")
        assert "No space left on device" in one.told()
        assert lent(server) == {}
        assert await drained(one) == ALL


async def test_a_block_that_somebody_deletes_is_claimed_again_for_its_loans(
    server: FakeApi, tmp_path: Path
) -> None:
    async with owner(server, tmp_path) as one, borrower(server, tmp_path) as two:
        theirs = await two.lease("b")
        (old,) = one.claims.blocks
        server.delete(IPAM_BLOCKS, "", old.name)
        await two.until(lambda: two.claims.borrowed or two.claims.blocks)
        held = {lease.addresses[Family.V4] for lease in two.leases._store.all()}
        assert held == {theirs}


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_definitions_of_an_earlier_version_make_nobody_use_an_address_twice(
    server: FakeApi, tmp_path: Path, at_once: None, *, restarted: bool
) -> None:
    """They were applied while an address was lent: each write from then on prunes the loan."""
    async with AsyncExitStack() as all_, AsyncExitStack() as first:
        one = await first.enter_async_context(owner(server, tmp_path))
        two = await all_.enter_async_context(borrower(server, tmp_path))
        theirs = await two.lease("b")
        key = (IPAM_BLOCKS, "", one.claims.blocks[0].name)
        if restarted:
            await first.aclose()
        one.pods[theirs] = Pod(namespace="shop", name="b", node="n2", addresses=(theirs,))
        await until(lambda: one.claims._is_present("n2", "uid-n2"))
        server.unknown = frozenset({"lent", "requests"})
        server.put(IPAM_BLOCKS, {**server.objects[key], "spec": pruned(block(server), server.unknown)})
        if restarted:
            pods, one = one.pods, await all_.enter_async_context(owner(server, tmp_path))
            one.pods.update(pods)
        await one.until(lambda: "does not know lent: apply the definitions of this version" in one.told())
        assert theirs not in await drained(one)
        assert [loan.address for loan in one.book.loans] == [theirs]
        # With the definition of this version, it is lent as before; and comes back in the end.
        server.unknown = frozenset()
        one.claims._due.set()
        await one.until(lambda: lent(server) == {theirs: "n2"})
        one.pods.clear()
        await two.release("b")
        two.claims.set_strict(True)
        two.claims._due.set()
        await one.until(lambda: not lent(server) and not one.book.loans)
        assert "does not know" not in one.told()


async def test_who_asks_by_a_definition_of_an_earlier_version_is_told(server: FakeApi, tmp_path: Path) -> None:
    server.unknown = frozenset({"lent", "requests"})
    async with owner(server, tmp_path), borrower(server, tmp_path) as two:
        two.claims.timeout = 3.0
        with pytest.raises(PoolExhausted):
            await two.lease("b")
        assert "does not know requests: apply the definitions of this version" in two.told()


def pruned(spec: Json, unknown: frozenset[str]) -> Json:
    return {key: value for key, value in spec.items() if key not in unknown}
