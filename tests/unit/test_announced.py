"""Addresses in annotations: written when a pod is connected, and believed where a lie is of no use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from felix_py.agent.announced import Announced
from felix_py.agent.pooled import NO_POOLS, Pooled
from felix_py.datastore.announcement_writer import ANNOTATION, AnnouncementWriter
from felix_py.datastore.client import Api
from felix_py.datastore.cluster import Cluster
from felix_py.ipam.resources import IPAMBlock, IPPool, Loan
from felix_py.records import Lease, NodeRecord
from policy.change import Change
from policy.holders import Holders
from policy.model import Family, ObjectKey, Pod
from tests.support.fakeapi import PATIENCE, PODS, FakeApi, pod
from tests.support.told import ToldFacts
from tests.support.waiting import until
from tests.support.watching import QUICK, configuration

NODES = {
    ("", "here"): NodeRecord("here", "", ("192.0.2.1",), ("10.1.0.0/24",)),
    ("", "there"): NodeRecord("there", "", ("192.0.2.2",), ("10.1.1.0/24", "fd00:1::/64")),
}
WEB = ("shop", "web")


def starting(*addresses: str, node: str = "there", name: str = "web", since: str = "2026-01-01T00:00:00Z") -> Pod:
    return Pod("shop", name, f"uid-{name}", node, since=since, announced=addresses)


@pytest.fixture
def announced() -> Announced:
    return Announced("here", NODES)


@pytest.mark.parametrize(
    ("claim", "node", "believed"),
    [
        (("10.1.1.5",), "there", True),
        (("10.1.1.5", "fd00:1::5"), "there", True),
        (("10.1.0.5",), "there", False),
        (("10.1.1.5", "fd00:2::5"), "there", False),
        (("192.0.2.2",), "there", False),
        (("203.0.113.7",), "there", False),
        (("10.1.1.5",), "unknown", False),
        (("10.1.1.5",), "", False),
        (("10.1.0.5",), "here", False),
    ],
)
def test_only_addresses_of_the_pods_own_node_are_believed(
    announced: Announced, claim: tuple[str, ...], node: str, believed: bool
) -> None:
    found = announced.believe(Change(None, starting(*claim, node=node)), NO_POOLS)
    assert found.after is not None
    assert found.after.addresses == (claim if believed else ())


@pytest.mark.parametrize(
    ("claim", "believed"),
    [
        (("10.64.1.5",), True),
        (("10.64.1.5", "fd00:1::5"), True),
        (("10.1.1.5",), False),
        (("10.64.0.5",), False),
        (("10.64.2.5",), False),
        (("10.64.2.9",), True),  # lent to that node
        (("10.64.1.9",), False),  # and lent by it
        (("10.64.1.10",), False),
    ],
)
def test_of_a_family_with_pools_only_addresses_of_the_nodes_blocks_are_believed(
    claim: tuple[str, ...], believed: bool
) -> None:
    pool = IPPool(name="p", cidr="10.64.0.0/16", block_size=24)
    blocks = {"10.64.0.0/24": "here", "10.64.1.0/24": "there", "10.64.2.0/24": "elsewhere"}
    lent = {
        "10.64.1.0/24": (Loan("10.64.1.9", "elsewhere"), Loan("10.64.1.10", "here")),
        "10.64.2.0/24": (Loan("10.64.2.9", "there"),),
    }
    objects = [
        IPAMBlock(name=cidr, cidr=cidr, node=node, node_uid="u", lent=lent.get(cidr, ()))
        for cidr, node in blocks.items()
    ]
    pooled = Pooled.of("here", [pool], objects)
    found = Announced("here", NODES).believe(Change(None, starting(*claim)), pooled)
    assert found.after is not None
    assert found.after.addresses == (claim if believed else ())


def test_each_change_begins_where_the_last_one_ended(announced: Announced) -> None:
    plain = Pod("shop", "web", "uid-web", "there")
    reported = Pod("shop", "web", "uid-web", "there", addresses=("10.1.1.5",))
    life = [None, plain, starting("10.1.1.5"), starting("10.1.1.6"), reported, None, starting("10.1.1.7"), None]
    seen = [announced.believe(Change(*pair), NO_POOLS) for pair in pairwise(life)]
    for earlier, later in pairwise(seen):
        assert later.before == earlier.after
    addresses = [change.after.addresses if change.after else None for change in seen]
    assert addresses == [(), ("10.1.1.5",), ("10.1.1.6",), ("10.1.1.5",), None, ("10.1.1.7",), None]


def test_what_comes_before_its_node_is_believed_once_the_node_is_known() -> None:
    nodes: dict[ObjectKey, NodeRecord] = {}
    announced = Announced("here", nodes)
    first, second = starting("10.1.1.5"), starting("10.1.1.6", name="db")
    assert announced.believe(Change(None, first), NO_POOLS) == Change(None, first)
    announced.believe(Change(None, second), NO_POOLS)
    assert announced.review(NO_POOLS) == []
    announced.believe(Change(second, None), NO_POOLS)
    nodes.update(NODES)
    believed = replace(first, addresses=("10.1.1.5",))
    assert announced.review(NO_POOLS) == [Change(first, believed)]
    assert announced.review(NO_POOLS) == []
    assert announced.believe(Change(first, None), NO_POOLS) == Change(believed, None)


def test_what_was_believed_is_doubted_once_nodes_or_pools_say_otherwise() -> None:
    pool = IPPool(name="p", cidr="10.64.0.0/16", block_size=24)

    def owned_by(node: str, *lent: Loan) -> Pooled:
        block = IPAMBlock(name="b", cidr="10.64.1.0/24", node=node, node_uid="u", lent=lent)
        return Pooled.of("here", [pool], [block])

    nodes = dict(NODES)
    announced = Announced("here", nodes)
    web, old = starting("10.64.1.5"), starting("fd00:1::5", name="old")
    believed, old_believed = replace(web, addresses=("10.64.1.5",)), replace(old, addresses=("fd00:1::5",))
    assert announced.believe(Change(None, web), owned_by("there")).after == believed
    assert announced.believe(Change(None, old), owned_by("there")).after == old_believed
    assert announced.review(owned_by("there")) == []
    for others in ("elsewhere", "here"):
        assert announced.review(owned_by(others)) == [Change(believed, web)]
        assert announced.told(web) == web
        assert announced.review(owned_by("there")) == [Change(web, believed)]
        assert announced.told(web) == believed
    assert announced.review(owned_by("there", Loan("10.64.1.5", "elsewhere"))) == [Change(believed, web)]
    assert announced.review(owned_by("there")) == [Change(web, believed)]
    assert announced.review(NO_POOLS) == [Change(believed, web)]
    nodes["", "there"] = NodeRecord("there", "", ("192.0.2.2",), ("10.1.7.0/24",))
    assert announced.review(NO_POOLS) == [Change(old_believed, old)]
    nodes["", "there"] = NODES["", "there"]
    assert announced.review(NO_POOLS) == [Change(old, old_believed)]
    del nodes["", "there"]
    assert announced.review(NO_POOLS) == [Change(old_believed, old)]
    assert announced.believe(Change(old, None), NO_POOLS) == Change(old, None)


def test_pools_that_change_and_change_back_between_two_looks_leave_nothing_believed(announced: Announced) -> None:
    before, meanwhile = Pooled.of("here", [], []), Pooled(loans={"there": ("10.9.0.1/32",)})
    assert announced.review(before) == []
    pod = starting("10.9.0.1")
    believed = announced.believe(Change(None, pod), meanwhile).after
    assert believed == replace(pod, addresses=("10.9.0.1",))
    assert announced.review(before) == [Change(believed, pod)]


def test_what_the_status_does_not_tell_is_added_to_it(announced: Announced) -> None:
    first = Pod("shop", "web", "uid-web", "there", addresses=("10.1.1.5",))
    both = replace(first, announced=("10.1.1.6",))
    seen = [announced.believe(Change(*pair), NO_POOLS) for pair in pairwise([None, first, both, first])]
    assert [change.after.addresses if change.after else None for change in seen] == [
        ("10.1.1.5",),
        ("10.1.1.5", "10.1.1.6"),
        ("10.1.1.5",),
    ]


def test_a_claim_of_more_weakens_no_pods_claim_of_its_own(announced: Announced) -> None:
    """A pod with a further interface loses its first address to no older pod that still lists it."""
    stale = Pod("shop", "db", "uid-db", "there", addresses=("10.1.1.5",), since="2020-01-01T00:00:00Z")
    web = Pod("shop", "web", "uid-web", "there", since="2026-01-01T00:00:00Z", addresses=("10.1.1.5",))
    both = announced.believe(Change(None, replace(web, announced=("10.1.1.6",))), NO_POOLS).after
    assert both is not None
    holders = Holders()
    for one in (stale, both):
        holders.claim(one.key, (), one.addresses, one)
    assert [holders.pod(address) for address in both.addresses] == [both, both]


def test_a_lie_takes_no_pods_address(announced: Announced) -> None:
    victim = Pod("shop", "db", "uid-db", "there", addresses=("10.1.1.9",), since="2020-01-01T00:00:00Z")
    liar = announced.believe(Change(None, starting("10.1.1.9", since="2026-01-01T00:00:00Z")), NO_POOLS).after
    assert liar is not None
    for order in ((victim, liar), (liar, victim)):
        holders = Holders()
        for one in order:
            holders.claim(one.key, (), one.addresses, one)
        owner = holders.pod("10.1.1.9")
        assert owner is not None
        assert owner.key == victim.key


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.1.1.5", ("10.1.1.5",)),
        ("10.1.1.5,FD00:1:0::5", ("10.1.1.5", "fd00:1::5")),
        ("10.1.1.5,10.1.1.6", ("10.1.1.5", "10.1.1.6")),
        ("10.1.1.7,10.1.1.6,10.1.1.7", ("10.1.1.7", "10.1.1.6")),
        (",".join(f"10.1.2.{n}" for n in range(33)), ()),
        ("10.1.1.5/32", ()),
        ("10.1.1.5,", ("10.1.1.5",)),
        ("lies", ()),
        ("", ()),
    ],
)
async def test_what_an_annotation_says(text: str, found: tuple[str, ...]) -> None:
    with FakeApi() as server:
        raw = pod("web", "shop")
        raw["metadata"]["annotations"] = {ANNOTATION: text}
        server.put(PODS, raw)
        reported = pod("old", "shop", ip="10.1.1.7")
        reported["metadata"]["annotations"] = {ANNOTATION: text}
        server.put(PODS, reported)
        cluster = Cluster(Api(lambda: configuration(server)), node_name="here", timing=QUICK)
        cluster.start()
        try:
            async with asyncio.timeout(PATIENCE):
                await cluster.in_sync()
            records: dict[ObjectKey, Pod] = dict(cluster.store.pods.records)
        finally:
            await cluster.stop()
    web, old = records["shop", "web"], records["shop", "old"]
    assert (web.addresses, web.announced) == ((), found)
    assert (old.addresses, old.announced) == (("10.1.1.7",), tuple(a for a in found if a != "10.1.1.7"))


@pytest.fixture
def server() -> Iterator[FakeApi]:
    with FakeApi() as made:
        made.put(PODS, pod("web", "shop"))
        yield made


def annotation(server: FakeApi, name: str = "web") -> str | None:
    found: str | None = (server.objects[PODS, "shop", name]["metadata"].get("annotations") or {}).get(ANNOTATION)
    return found


async def test_a_connected_pods_addresses_are_written_and_no_others(server: FakeApi) -> None:
    api = Api(lambda: configuration(server))
    writer = AnnouncementWriter(api)
    try:
        problems: list[str] = []
        # What is refused holds up nothing.
        writer.announce(("shop", "gone"), "uid-gone", ("10.1.1.3",), problems.append)
        writer.announce(WEB, "another", ("10.1.1.4",), problems.append)
        writer.announce(WEB, "uid-web", ("10.1.1.5",), problems.append)
        await until(lambda: len(problems) == 3)
        assert "no such pod" in problems[0]
        assert "uid" in problems[1]
        assert problems[2] == ""
        await until(lambda: annotation(server) == "10.1.1.5")
        assert [one.path for one in server.requests if one.method == "PATCH"][-1].endswith(
            "/shop/pods/web/status"
        )
    finally:
        await asyncio.to_thread(writer.stop)
        api.close()


async def test_a_server_that_is_away_holds_up_nothing(server: FakeApi) -> None:
    api = Api(lambda: configuration(server))
    writer = AnnouncementWriter(api)
    server.__exit__(None, None, None)
    for _ in range(1000):
        writer.announce(WEB, "uid-web", ("10.1.1.5",))
    await asyncio.to_thread(writer.stop)
    api.close()


def test_an_interface_that_comes_when_its_pods_name_is_another_nodes_by_now(announced: Announced) -> None:
    """A StatefulSet's pod, of a runtime that tells no uid: what the next one claims is believed elsewhere, and
    no longer once that is gone."""
    facts = ToldFacts("here", announced=announced)
    now = Pod("shop", "web", "uid-new", "there", (("app", "web"),), ("10.1.1.5",), announced=("10.1.1.6",))
    facts.told.pods[now.key] = now
    facts.fold(announced.believe(Change(None, now), NO_POOLS))
    facts.attach(Lease("old", "eth0", "n", "shop", "web", "", "felix0", {Family.V4: "10.1.0.1"}, 1.0))
    relabelled = replace(now, labels=(("app", "db"),))
    facts.told.pods[now.key] = relabelled
    facts.fold(announced.believe(Change(now, relabelled), NO_POOLS))
    del facts.told.pods[now.key]
    facts.fold(announced.believe(Change(relabelled, None), NO_POOLS))
    facts.detach(facts.held.of(now.key)[0])
    assert [facts.engine.holders.pod(address) for address in ("10.1.1.5", "10.1.1.6")] == [None, None]
