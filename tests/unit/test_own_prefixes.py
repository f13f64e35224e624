"""Which pod addresses are a node's own while its podCIDRs change, are gone, or are another node's."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bgp.prefixes import PrefixSet
from felix_py.agent.own_prefixes import OwnPrefixes, told
from felix_py.agent.pooled import Pooled
from felix_py.ipam.resources import AllowedUse, IPAMBlock, IPPool, Loan
from felix_py.records import Lease, NodeRecord
from policy.model import Family
from tests.support.steps import events_of
from tests.support.told import ToldFacts

V4, V6 = Family
OLD, NEW = ("10.1.0.0/24", "fd00:1::/64"), ("10.3.0.0/24", "fd00:3::/64")
OTHER = NodeRecord("n2", pod_cidrs=("10.2.0.0/24",))


def lease(number: int, *families: Family) -> Lease:
    addresses = {V4: f"10.1.0.{number}", V6: f"fd00:1::{number:x}"}
    held = {family: addresses[family] for family in families or tuple(Family)}
    return Lease(f"c{number}", "eth0", "n", "shop", f"pod{number}", "u", f"felix{number}", held, float(number))


def node(*cidrs: str) -> NodeRecord:
    return NodeRecord("n1", pod_cidrs=cidrs)


def test_as_usual() -> None:
    own = OwnPrefixes().following(node(*OLD), [OTHER], [lease(2)])
    assert own == OwnPrefixes(OLD)
    assert own.all == OLD
    assert told(own, node(*OLD), [OTHER], [lease(2)]) == ({}, {})


def test_other_pod_cidrs_while_pods_run() -> None:
    own = OwnPrefixes(OLD).following(node(*NEW), [OTHER], [lease(2), lease(3, V6)])
    assert own.all == (*NEW, "10.1.0.2/32", "fd00:1::2/128", "fd00:1::3/128")
    (outside,), shared = (found for found in told(own, node(*NEW), [OTHER], [lease(2), lease(3, V6)]))
    assert outside == "podCIDRs"
    assert shared == {}
    assert own.following(node(*NEW), [OTHER], []) == OwnPrefixes(NEW)
    # A restarted agent knows no more than the leases.
    assert OwnPrefixes().following(node(*NEW), [OTHER], [lease(2), lease(3, V6)]) == own
    # And back.
    assert own.following(node(*OLD), [OTHER], [lease(2)]) == OwnPrefixes(OLD)


def test_one_family_is_added() -> None:
    own = OwnPrefixes(OLD[:1]).following(node(*OLD), [], [lease(2)])
    assert own == OwnPrefixes(OLD)
    own = own.following(node(OLD[0]), [], [lease(2)])
    assert own.all == (OLD[0], "fd00:1::2/128")
    # Where the node has no podCIDRs of a family, another IPAM plugin gives the addresses: nothing to tell.
    assert told(own, node(OLD[0]), [], [lease(2)]) == ({}, {})


@pytest.mark.parametrize("record", [None, node()])
def test_without_pod_cidrs_it_keeps_what_it_had(record: NodeRecord | None) -> None:
    own = OwnPrefixes(OLD).following(record, [OTHER], [lease(2)])
    assert own == OwnPrefixes(OLD)
    # But for what another node has by then.
    taker = NodeRecord("n3", pod_cidrs=("10.1.0.0/25",))
    own = own.following(record, [OTHER, taker], [lease(2)])
    assert own.all == ("fd00:1::/64", "10.1.0.2/32")
    # Nobody knows: only leases count.
    assert OwnPrefixes().following(record, [OTHER], [lease(2)]).all == ("10.1.0.2/32", "fd00:1::2/128")


@pytest.mark.parametrize("other", ["10.1.0.0/24", "10.0.0.0/8", "10.1.0.128/25", "0.0.0.0/0"])
def test_pod_cidrs_of_two_nodes(other: str) -> None:
    rivals = [OTHER, NodeRecord("n3", pod_cidrs=(other,))]
    outside, shared = told(OwnPrefixes(OLD), node(*OLD), rivals, [])
    assert outside == {}
    assert shared.keys() == {"10.1.0.0/24"}
    assert shared["10.1.0.0/24"].startswith(f"10.1.0.0/24 is a podCIDR of this node, and {other} one of node n3")


def test_who_may_give_the_same_addresses() -> None:
    own = OwnPrefixes(NEW, ("10.1.0.2/32",))
    outside, _ = told(own, node(*NEW), [NodeRecord("n3", pod_cidrs=OLD)], [lease(2)])
    assert "at once, because n3 may give the same addresses to other pods" in outside["podCIDRs"]


def test_many_pods_make_a_short_notice() -> None:
    leases = [lease(number) for number in range(2, 100)]
    own = OwnPrefixes().following(node(*NEW), [], leases)
    assert "and 93 more have addresses outside" in told(own, node(*NEW), [], leases)[0]["podCIDRs"]


def test_addresses_of_a_family_that_is_switched_off_are_nobodys() -> None:
    facts = ToldFacts("n1", (Family.V4,))
    facts.upsert(node(*OLD))
    facts.upsert(OTHER)
    facts.attach(lease(2))
    assert facts.pod_cidrs == ("10.1.0.0/24",)
    assert facts.own_prefixes == ("10.1.0.0/24",)
    assert all(":" not in cidr for cidr in facts.cluster_cidrs)
    facts.upsert(node(*NEW))
    assert facts.own_prefixes is not None
    assert [prefix for prefix in facts.own_prefixes if ":" in prefix] == []


# --- pools ---------------------------------------------------------------------------------------

POOL = IPPool(name="p", cidr="10.64.0.0/16", block_size=26)


def pooled(*blocks: str) -> Pooled:
    claimed = [IPAMBlock(name=cidr, cidr=cidr, node="n1", node_uid="u") for cidr in blocks]
    return Pooled.of("n1", [POOL], claimed)


def test_from_pod_cidrs_to_a_pool_and_back() -> None:
    v4 = lease(2, V4)
    own = OwnPrefixes(OLD).following(node(*OLD), [OTHER], [v4], pooled=pooled())
    # The pool is there, a pod still has an address of the podCIDR; IPv6 has no pool.
    assert own.all == OLD
    own = own.following(node(*OLD), [OTHER], [v4], pooled=pooled("10.64.0.0/26"))
    assert own.all == (*OLD, "10.64.0.0/26")
    assert own.lasting == ("fd00:1::/64", "10.64.0.0/26")
    assert told(own, node(*OLD), [OTHER], [v4], pooled("10.64.0.0/26")) == ({}, {})
    own = own.following(node(*OLD), [OTHER], [], pooled=pooled("10.64.0.0/26"))
    assert own.all == ("fd00:1::/64", "10.64.0.0/26")
    # Back again: the pool is deleted, and the block given back, while a pod runs.
    new = replace(v4, addresses={V4: "10.64.0.5"})
    own = own.following(node(*OLD), [OTHER], [new], pooled=Pooled())
    assert own.all == (*OLD, "10.64.0.5/32")
    outside, _ = told(own, node(*OLD), [OTHER], [new])
    assert "shop/pod2 have addresses outside" in outside["podCIDRs"]


def test_a_borrowed_address_is_announced_by_itself_and_nothing_to_tell_of() -> None:
    lent = Loan("10.64.9.7", "n1")
    block = IPAMBlock(name="b", cidr="10.64.9.0/26", node="n2", node_uid="u", lent=(lent,))
    mine = Pooled.of("n1", [POOL], [block])
    held = replace(lease(2, V4), addresses={V4: "10.64.9.7"})
    own = OwnPrefixes(OLD).following(node(*OLD), [OTHER], [held], pooled=mine)
    assert own.all == ("fd00:1::/64", "10.64.9.7/32")
    assert told(own, node(*OLD), [OTHER], [held], mine) == ({}, {})
    theirs = Pooled.of("n2", [POOL], [block])
    assert theirs.lent == ("10.64.9.7/32",)
    assert not PrefixSet(theirs.not_others(theirs.blocks)).covers("10.64.9.7/32")
    assert PrefixSet(theirs.not_others(theirs.blocks)).covers("10.64.9.8/32")


def test_endpoints_before_the_node_are_not_all_looked_at_for_each() -> None:
    def attach(number: int) -> None:
        facts = ToldFacts("n1")
        for one in range(1, number + 1):
            facts.attach(lease(one))

    assert events_of(lambda: attach(200)) < 6 * events_of(lambda: attach(50))


def test_nothing_is_withdrawn_before_it_is_known_which_pools_there_are() -> None:
    facts = ToldFacts("n1", pooled=None)
    facts.upsert(node(*OLD))
    assert facts.own_prefixes is None
    assert facts.announced is None
    facts.set_pooled(Pooled())
    assert facts.announced == OLD


def test_an_address_inside_another_nodes_block_is_announced_though_no_pool_is_for_pods_any_more() -> None:
    balancers = IPPool(
        name="p", cidr="10.1.0.0/24", block_size=30, allowed_uses=frozenset({AllowedUse.LOAD_BALANCER})
    )
    block = IPAMBlock(name="b", cidr="10.1.0.0/30", node="n2", node_uid="u")
    theirs = Pooled.of("n1", [balancers], [block])
    own = OwnPrefixes(OLD).following(node(*OLD), [OTHER], [lease(2, V4), lease(5, V4)], pooled=theirs)
    assert own.strays == ("10.1.0.2/32",)
