"""The agent's claims on a server: what is there afterwards, whatever was lost on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from felix_py.agent.block_notes import BlockNotes
from felix_py.ipam import known
from felix_py.ipam.names import NODE_LABEL, block_name
from felix_py.ipam.pools import NoPool
from felix_py.ipam.store import PoolExhausted
from tests.support import faults
from tests.support.claiming import (
    POD_CIDRS,
    Node,
    declare,
    lost_after,
    lost_before,
    objects,
    pool_server,
    running,
    states,
)
from tests.support.fakeapi import (
    BLOCK_AFFINITIES,
    IP_POOLS,
    IP_RESERVATIONS,
    IPAM_BLOCKS,
    NODES,
    PATIENCE,
    FakeApi,
)
from tests.support.waiting import until
from tests.support.watching import QUICK


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with pool_server() as found:
        yield found


async def test_without_pools_nothing_is_written_or_watched(server: FakeApi, tmp_path: Path) -> None:
    async with running(server, tmp_path) as node:
        assert node.cidrs() == POD_CIDRS
        assert node.claims.blocks == ()
        with pytest.raises(NoPool, match="IPPool other does not exist"):
            node.cidrs("other")
        asked = {request.path for request in server.requests}
        assert not asked & {IPAM_BLOCKS, BLOCK_AFFINITIES}
        assert {request.method for request in server.requests} == {"GET"}
    assert not (tmp_path / "blocks.json").exists()


async def test_a_block_is_there_before_the_first_pod(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, nodeSelector="zone == 'a'")
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        (block,) = objects(server, IPAM_BLOCKS)
        assert block == {"cidr": node.cidrs()[0], "node": "n1", "nodeUID": "uid-n1"}
        assert states(server) == {block["cidr"]: "confirmed"}
        assert (await node.lease("a")).startswith("10.0.0.")
        writes = [request.method for request in server.requests if request.method != "GET"]
        assert writes == ["POST", "POST", "PATCH"]


async def test_a_pool_with_a_field_of_a_later_version_is_used(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, vxlanMode="Never")
    async with running(server, tmp_path) as node:
        assert (await node.lease("a")).startswith("10.0.0.")
        assert node.told() == "IPPool pods: vxlanMode: this version does not know the field"


async def test_a_pool_that_comes_later_and_a_family_without_one(server: FakeApi, tmp_path: Path) -> None:
    async with running(server, tmp_path) as node:
        declare(server, "six", cidr="fd00::/112", blockSize=124)
        await node.until(lambda: node.claims.blocks)
        six, four = node.cidrs()
        assert (six.endswith("/124"), four) == (True, POD_CIDRS[0])


async def test_who_starts_just_after_the_first_pool_waits_for_its_blocks(server: FakeApi, tmp_path: Path) -> None:
    """Else it gets an address of a podCIDR for its life: a real server refuses the first watches of new kinds."""
    told = threading.Event()
    for verb in ("watchlist", "list"):
        server.fault(verb, lambda _exchange: not told.wait(PATIENCE), path=IPAM_BLOCKS)
    async with running(server, tmp_path) as node:
        assert await node.claims.caught_up()
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
        await asyncio.to_thread(server.wait_for, lambda: bool(server.verbs(IPAM_BLOCKS)))
        waiting = asyncio.create_task(node.claims.caught_up())
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        node.claims.timeout = 0.01
        assert not await node.claims.caught_up()
        told.set()
        assert await waiting
        assert all(cidr.startswith("10.0.0.") for cidr in node.cidrs() if ":" not in cidr)


@pytest.mark.parametrize("path", [IPAM_BLOCKS, BLOCK_AFFINITIES])
@pytest.mark.parametrize("code", [401, 403, 404])
async def test_who_starts_while_blocks_are_refused_for_a_moment_waits_no_longer_than_that(
    server: FakeApi, tmp_path: Path, path: str, code: int
) -> None:
    """As by a server that has not read a new role yet. It got an address of a podCIDR, for its life."""
    server.fault("*", faults.refuse(code), path=path, times=2)
    async with running(server, tmp_path) as node:
        told: list[str] = []
        node.claims.on_change = lambda: told.extend(pool.name for pool in node.claims.pools)
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
        await until(lambda: node.claims.pools)
        assert await node.claims.caught_up()
        assert "pods" in told


async def test_nobody_waits_for_long_for_blocks_that_may_not_be_seen(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.claiming.QUICK", replace(QUICK, refused=0.5))
    server.fault("*", faults.refuse(403, "Forbidden", "ipamblocks is forbidden"), path=IPAM_BLOCKS, times=99)
    async with running(server, tmp_path) as node:
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
        await until(lambda: node.claims.pools)
        assert await node.claims.caught_up()
        assert node.claims.known
        assert not node.claims.blocks
        assert len(server.verbs(IPAM_BLOCKS)) < 10
        await until(lambda: "IPAMBlocks" in node.told())
        assert node.claims.unseen() == ("pods",)
        server.clear_faults()
        await node.until(lambda: node.claims.blocks)
        assert (node.told(), node.claims.unseen()) == ("", ())


@pytest.mark.parametrize("path", [IP_POOLS, IP_RESERVATIONS, IPAM_BLOCKS])
async def test_pools_of_before_are_known_to_an_agent_that_may_not_see_them_any_more(
    server: FakeApi, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.support.claiming.QUICK", replace(QUICK, refused=0.5))
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    declare(server, "services", cidr="10.0.1.0/24", allowedUses=["LoadBalancer"])
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        assert node.claims.unseen() == ()
    server.fault("*", faults.refuse(403, "Forbidden"), path=path, times=99)
    async with running(server, tmp_path, seen=False) as node:
        await until(lambda: node.claims.unseen() == ("pods",))
        server.clear_faults()
        await node.until(lambda: node.claims.blocks)
        assert node.claims.unseen() == ()


async def test_the_next_block_is_claimed_before_the_first_is_full(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        addresses = [await node.lease(f"pod-{number}") for number in range(30)]
        assert len(set(addresses)) == 30
        await node.until(lambda: len(node.claims.blocks) == 3 or len(states(server)) == 3)
        assert {one["node"] for one in objects(server, IPAM_BLOCKS)} == {"n1"}


async def test_a_pod_that_waits_costs_one_block(server: FakeApi, tmp_path: Path) -> None:
    """Not a further one in the moment when the block is there and the pod has not looked into it yet."""
    declare(server, "own", cidr="10.0.0.0/24", blockSize=28, assignmentMode="Manual")
    async with running(server, tmp_path) as node:
        assert (await node.lease("a", "own")).startswith("10.0.0.")
        declare(server, "later", cidr="10.1.0.0/24", blockSize=28)
        await node.until(lambda: len(node.claims.blocks) > 1)
        assert [cidr for cidr in states(server) if cidr.startswith("10.0.")] == [node.cidrs("own")[0]]


async def test_an_exhausted_pool_is_said(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "few", cidr="10.0.0.0/30", blockSize=30)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        assert {await node.lease("a"), await node.lease("b")} == {"10.0.0.1", "10.0.0.2"}
        with pytest.raises(PoolExhausted):
            await node.lease("c")
        assert "no block is left in few" in node.told()
        await node.release("a")
        assert await node.lease("c") == "10.0.0.1"


async def test_addresses_that_are_free_and_yet_cannot_be_had(server: FakeApi, tmp_path: Path) -> None:
    """They are in use elsewhere on the node, say: no pod waits for them for ever."""
    declare(server, "few", cidr="10.0.0.0/30", blockSize=30)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        await node.leases.use(lambda store: store.close_empty("10.0.0.0/30"))
        with pytest.raises(PoolExhausted):
            await node.lease("a")


async def test_nothing_is_given_out_before_pools_are_known(server: FakeApi, tmp_path: Path) -> None:
    with pytest.raises(NoPool, match="not known yet which IPPools there are"):
        Node(server, tmp_path, "n1").cidrs()


async def test_two_nodes_never_have_one_block(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "few", cidr="10.0.0.0/29", blockSize=30)
    async with running(server, tmp_path / "1") as one, running(server, tmp_path / "2", "n2") as two:
        taken: list[str] = []
        for number in range(2):
            taken += await asyncio.gather(one.lease(f"a{number}"), two.lease(f"b{number}"))
        assert len(set(taken)) == 4
        owners = {spec["cidr"]: spec["node"] for spec in objects(server, IPAM_BLOCKS)}
        assert sorted(owners.values()) == ["n1", "n2"]
        for node in (one, two):
            assert [owners[block.cidr] for block in node.claims.blocks] == [node.name]


@pytest.mark.parametrize("fault", [lost_after, lost_before])
async def test_every_write_is_lost_once(server: FakeApi, tmp_path: Path, fault: Any) -> None:
    for verb in ("post", "post", "patch"):
        server.fault(verb, fault)
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        assert states(server) == {node.claims.blocks[0].cidr: "confirmed"}
        assert len(objects(server, IPAM_BLOCKS)) == 1


async def test_an_empty_block_is_given_back_and_never_used_again(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        (block,) = node.claims.blocks
        old = server.objects[IPAM_BLOCKS, "", block.name]
        await node.lease("a")
        monkeypatch.setattr(known, "REST", 0.0)
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, disabled=True)
        await node.until(lambda: node.claims.pools and node.claims.pools[0].disabled)
        assert states(server) == {block.cidr: "confirmed"}, "a pod has an address of it"
        node.leases._store.cooldown = 0.0
        await node.release("a")
        node.claims._due.set()
        await node.until(lambda: not states(server) and not objects(server, IPAM_BLOCKS))
        assert node.claims.blocks == ()
    # An old list of another API server shows it again.
    server.put(IPAM_BLOCKS, old)
    affinity = {"cidr": block.cidr, "node": "n1", "state": "confirmed"}
    metadata = {"name": f"n1-{block.name}", "uid": "x", "labels": {"felixpy.io/node": "n1"}}
    server.put(BLOCK_AFFINITIES, {"metadata": metadata, "spec": affinity})
    monkeypatch.undo()
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        assert [one.uid for one in node.claims.blocks] != [block.uid]


async def test_a_node_object_made_anew_keeps_the_blocks_with_leases(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        (before,) = node.claims.blocks
        await node.lease("a")
        server.put(NODES, {"metadata": {"name": "n1", "uid": "new", "labels": {"zone": "a"}}})
        await node.until(lambda: [one.node_uid for one in node.claims.blocks] == ["new"])
        assert [one.uid for one in node.claims.blocks] == [before.uid]
        assert states(server) == {before.cidr: "confirmed"}  # another one was claimed meanwhile


async def test_a_block_that_somebody_deletes_is_claimed_again_for_its_leases(
    server: FakeApi, tmp_path: Path
) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        (block,) = node.claims.blocks
        await node.lease("a")
        server.delete(IPAM_BLOCKS, "", block.name)
        await node.until(lambda: node.claims.blocks and node.claims.blocks[0].uid != block.uid)
        assert node.cidrs() == (block.cidr,)


async def test_the_block_of_one_address(server: FakeApi, tmp_path: Path) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        other = next(n for n in range(0, 256, 16) if f"10.0.0.{n}/28" not in node.cidrs())
        assert await node.claims.claim_with(f"10.0.0.{other + 5}")
        assert f"10.0.0.{other}/28" in node.cidrs()
        foreign = next(n for n in range(0, 256, 16) if f"10.0.0.{n}/28" not in states(server))
        cidr = f"10.0.0.{foreign}/28"
        spec = {"cidr": cidr, "node": "n9", "nodeUID": "u"}
        server.put(IPAM_BLOCKS, {"metadata": {"name": block_name(cidr), "uid": "y"}, "spec": spec})
        assert not await node.claims.claim_with(f"10.0.0.{foreign + 1}")
        assert not await node.claims.claim_with("192.0.2.1")


async def test_a_pool_that_is_spoilt_stays_as_it_was_and_one_that_overlaps_is_refused(
    server: FakeApi, tmp_path: Path
) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        declare(server, "young", cidr="10.0.0.0/16")
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, nodeSelector="zone ==")
        await node.until(lambda: len(node.warned) == 2)
        assert {(one.name, one.field) for one in node.warned} == {("young", "cidr"), ("pods", "nodeSelector")}
        assert [pool.name for pool in node.claims.pools] == ["pods"]
        assert "overlaps 10.0.0.0/24 of the older IPPool pods" in node.told()
        server.delete(IP_POOLS, "", "young")
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
        await node.until(lambda: not node.told())


async def test_a_disk_that_is_full_gives_nothing_back(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        (block,) = node.claims.blocks

        def full(_fields: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(known, "REST", 0.0)
        with pytest.MonkeyPatch.context() as disk:
            disk.setattr(node.claims._notes.file, "write", full)
            declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, disabled=True)
            await node.until(lambda: "No space left on device" in node.told())
            assert states(server) == {block.cidr: "confirmed"}
        await node.until(lambda: not states(server))


@pytest.mark.parametrize(("label", "of"), [("n1", "n2"), ("n2", "n1"), ("n2", "n2")])
async def test_an_affinity_that_somebody_has_made_anew_keeps_no_block_from_its_node(
    server: FakeApi, tmp_path: Path, label: str, of: str
) -> None:
    """Its name was taken, by another node's or one that is not seen: the block could not be used, nor another."""
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        first = await node.lease("a")
        (block,) = node.claims.blocks
    ((_, _, name),) = [key for key in server.objects if key[0] == BLOCK_AFFINITIES]
    server.delete(BLOCK_AFFINITIES, "", name)
    spec = {"cidr": block.cidr, "node": of, "state": "confirmed"}
    metadata = {"name": name, "uid": "another", "labels": {NODE_LABEL: label}}
    server.put(BLOCK_AFFINITIES, {"metadata": metadata, "spec": spec})
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        assert await node.lease("b") != first
        assert [one.cidr for one in node.claims.blocks] == [block.cidr]
        (affinity,) = objects(server, BLOCK_AFFINITIES)
        assert affinity == {"cidr": block.cidr, "node": "n1", "state": "confirmed"}


async def test_a_block_whose_name_is_taken_for_good_is_told(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an object that no agent can read: pods waited, and only the log said why."""
    monkeypatch.setattr("felix_py.agent.block_steps._RETRY", (0.01, 0.01))
    server.put(IPAM_BLOCKS, {"metadata": {"name": block_name("10.0.0.0/28"), "uid": "x"}, "spec": {}})
    declare(server, "pods", cidr="10.0.0.0/28", blockSize=28)
    async with running(server, tmp_path) as node:
        await until(lambda: "block 10.0.0.0/28 cannot be claimed" in node.told())
        server.delete(IPAM_BLOCKS, "", block_name("10.0.0.0/28"))
        await node.until(lambda: node.claims.blocks)
        await until(lambda: not node.told())


async def test_a_failure_is_told_as_long_as_there_is_something_to_do(server: FakeApi, tmp_path: Path) -> None:
    """It was told for ever, of a block that nobody wants any more."""
    server.fault("post", faults.refuse(403, "Forbidden"), path=BLOCK_AFFINITIES, times=99)
    async with running(server, tmp_path) as node:
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
        await until(lambda: "cannot be claimed" in node.told())
        server.delete(IP_POOLS, "", "pods")
        await until(lambda: not node.told())


@pytest.mark.parametrize(("uid", "used"), [("pods", ["pods"]), ("made-anew", [])])
async def test_the_last_good_form_of_a_pool_outlasts_the_agent(
    server: FakeApi, tmp_path: Path, uid: str, used: list[str]
) -> None:
    """After a restart the pool was none any more, and pods got addresses of podCIDRs."""
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
    async with running(server, tmp_path) as node:
        await node.until(lambda: node.claims.blocks)
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, natOutgoing=True)
        await node.until(lambda: node.claims.pools[0].nat_outgoing)
        await until(lambda: b"natOutgoing" in (tmp_path / "pools.json").read_bytes())
    declare(server, "pods", cidr="10.0.0.0/24", blockSize=28, nodeSelector="has((")
    held = server.objects[IP_POOLS, "", "pods"]
    server.put(IP_POOLS, {**held, "metadata": {**held["metadata"], "uid": uid}})
    for _ in range(2):
        async with running(server, tmp_path) as node:
            assert [pool.name for pool in node.claims.pools if pool.nat_outgoing] == used
            assert "nodeSelector" in node.told()


async def test_blocks_that_could_not_be_noted_are_once_there_is_room(server: FakeApi, tmp_path: Path) -> None:
    """The notice stayed until the node's next block, and so did the file as it was."""
    async with running(server, tmp_path) as node:
        (tmp_path / "blocks.json").mkdir()
        declare(server, "pods", cidr="10.0.0.0/24", blockSize=28)
        await node.until(lambda: "blocks cannot be noted" in node.told())
        await node.until(lambda: node.claims.blocks)
        (tmp_path / "blocks.json").rmdir()
        await node.lease("web")
        await until(lambda: not node.told())
    assert BlockNotes(tmp_path).own
