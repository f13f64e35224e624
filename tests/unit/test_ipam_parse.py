"""Pools, reservations, blocks and affinities as records: what fields mean, what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from bgp.resources import Problem
from felix_py.ipam.names import affinity_name, block_name, node_label
from felix_py.ipam.parse import (
    Bad,
    Declared,
    Origin,
    parse_affinity,
    parse_block,
    parse_pool,
    parse_reservation,
    unknown,
    without_overlaps,
)
from felix_py.ipam.resources import (
    AffinityState,
    AllowedUse,
    AssignmentMode,
    BlockAffinity,
    IPAMBlock,
    IPPool,
    IPReservation,
    Loan,
    LoanRequest,
)
from policy.model import Family
from tests.support.ipam_resources import POOL, RESERVATION

ORIGIN = Origin("uid-1", "7")


def test_everything_of_a_pool() -> None:
    assert parse_pool("pods", POOL) == IPPool(
        name="pods",
        cidr="10.64.0.0/16",
        block_size=28,
        node_selector="zone == 'a'",
        namespace_selector="has(team)",
        nat_outgoing=True,
        disabled=True,
        disable_bgp_export=True,
        allowed_uses=frozenset(AllowedUse),
        assignment_mode=AssignmentMode.MANUAL,
    )


@pytest.mark.parametrize(
    ("cidr", "size", "family"), [("10.0.0.0/16", 26, Family.V4), ("fd00::/64", 122, Family.V6)]
)
def test_what_is_not_set_is_as_in_calico(cidr: str, size: int, family: Family) -> None:
    found = parse_pool("pods", {"cidr": cidr, "nodeSelector": ""})
    assert found == IPPool(name="pods", cidr=cidr, block_size=size)
    assert found.family is family


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"cidr": None}, "cidr", "is missing"),
        ({"cidr": "10.64.0.1/16"}, "cidr", "'10.64.0.1/16' is not a CIDR such as"),
        ({"cidr": "10.64.0.0/29"}, "cidr", "10.64.0.0/29 has no room for a block of blockSize 28"),
        ({"cidr": "169.254.0.0/16"}, "cidr", "169.254.0.0/16 is link-local"),
        ({"cidr": "fd00::/64"}, "blockSize", ""),
        ({"blockSize": 19}, "blockSize", ""),
        ({"blockSize": True}, "blockSize", "must be a number"),
        ({"nodeSelector": "zone =="}, "nodeSelector", ""),
        ({"allowedUses": ["Tunnel"]}, "allowedUses[0]", "'Tunnel' is not one of Workload, LoadBalancer"),
        ({"allowedUses": []}, "allowedUses", "must not be empty"),
        ({"assignmentMode": "Never"}, "assignmentMode", "'Never' is not one of Automatic, Manual"),
        ({"natOutgoing": "yes"}, "natOutgoing", ""),
    ],
)
def test_pool_that_is_refused(changed: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(Bad) as caught:
        parse_pool("pods", POOL | changed)
    problem = caught.value.problem
    assert (problem.kind, problem.name, problem.field) == ("IPPool", "pods", field)
    assert problem.reason.startswith(reason)


def test_a_field_of_a_later_version_is_passed_over_and_told() -> None:
    assert parse_pool("pods", POOL | {"vxlanMode": "Always"}) == parse_pool("pods", POOL)
    assert parse_reservation("few", RESERVATION | {"until": "noon"}) == parse_reservation("few", RESERVATION)
    for kind, known, field in (("IPPool", POOL, "vxlanMode"), ("IPReservation", RESERVATION, "until")):
        assert [one.field for one in unknown(kind, "few", known | {field: "x"})] == [field]
        assert unknown(kind, "few", known) == []


def test_reservations() -> None:
    assert parse_reservation("few", RESERVATION) == IPReservation("few", tuple(RESERVATION["reservedCIDRs"]))
    assert parse_reservation("none", None) == IPReservation("none", ())
    with pytest.raises(Bad, match=r"reservedCIDRs\[1\]: '10.0.0.1' is not a CIDR"):
        parse_reservation("bad", {"reservedCIDRs": ["10.0.0.0/30", "10.0.0.1"]})


def pool(name: str, cidr: str) -> IPPool:
    return IPPool(name=name, cidr=cidr, block_size=122 if ":" in cidr else 26)


def test_of_two_pools_that_overlap_the_older_is_used() -> None:
    declared = [
        Declared(pool("a", "10.0.0.0/8"), "2026-01-02T00:00:00Z"),
        Declared(pool("b", "10.1.0.0/16"), "2026-01-01T00:00:00Z"),
        Declared(pool("c", "10.2.0.0/16"), "2026-01-03T00:00:00Z"),
        Declared(pool("e", "fd00::/64"), "2026-01-01T00:00:00Z"),
        Declared(pool("d", "fd00::/64"), "2026-01-01T00:00:00Z"),
    ]
    kept, problems = without_overlaps(declared)
    assert [one.name for one in kept] == ["b", "c", "d"], "what overlaps nothing but a refused pool is used"
    assert problems == (
        Problem(
            "IPPool", "a", "cidr", "10.0.0.0/8 overlaps 10.1.0.0/16 of the older IPPool b, so it is not used"
        ),
        Problem("IPPool", "e", "cidr", "fd00::/64 overlaps fd00::/64 of the older IPPool d, so it is not used"),
    )
    assert without_overlaps(reversed(declared)) == (kept, problems)


def test_blocks_and_affinities() -> None:
    spec = {"cidr": "10.0.0.64/26", "node": "n1", "nodeUID": "u", "later": 1}
    loan = {"address": "10.0.0.70", "node": "n2", "nodeUID": "v", "uid": "w", "later": 1}
    lent = {"lent": [loan], "requests": [{"node": "n3", "nodeUID": "x", "count": 2}]}
    block = IPAMBlock(
        name="b",
        cidr="10.0.0.64/26",
        node="n1",
        node_uid="u",
        resource_version="7",
        lent=(Loan("10.0.0.70", "n2", "v", "w"),),
        requests=(LoanRequest(node="n3", node_uid="x", count=2),),
        uid="uid-1",
    )
    assert parse_block("b", spec | lent, ORIGIN) == block
    assert parse_affinity("a", {"cidr": "10.0.0.64/26", "node": "n1", "state": "pendingDeletion"}, ORIGIN) == (
        BlockAffinity(
            name="a",
            node="n1",
            cidr="10.0.0.64/26",
            state=AffinityState.PENDING_DELETION,
            resource_version="7",
            uid="uid-1",
        )
    )


@pytest.mark.parametrize(
    "spec",
    [None, [], {}, {"cidr": "10.0.0.1/26", "node": "n", "nodeUID": "u"}, {"cidr": "10.0.0.0/26", "node": 5}],
)
def test_spoilt_block_is_no_block(spec: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_block("b", spec, ORIGIN)


def test_names() -> None:
    assert block_name("10.0.0.64/26") == "10-0-0-64-26"
    assert block_name("fd00::40/122") == "fd00--40-122"
    assert block_name("::40/122") == "0--40-122"
    assert affinity_name("n1", "10.0.0.64/26") == "n1-10-0-0-64-26"
    longest = "n" * 252
    assert len({affinity_name(f"{longest}{end}", "10.0.0.64/26") for end in "ab"}) == 2
    assert len(affinity_name(f"{longest}a", "10.0.0.64/26")) == 253
    assert node_label("n1.example") == "n1.example"
    assert len(node_label(longest)) == 63
