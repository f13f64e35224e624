"""Which pools and blocks are for a pod, against an oracle in plain words; reserved addresses, one by one."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.ipam.names import affinity_name, block_name
from felix_py.ipam.pool import Pool
from felix_py.ipam.pools import NoPool, Subject, cidrs_of, eligible, reserved_in
from felix_py.ipam.resources import AllowedUse, AssignmentMode, IPAMBlock, IPPool, IPReservation
from policy.model import Family
from tests.support.thorough import examples

SELECTORS: Mapping[str, Callable[[Mapping[str, str]], bool]] = {
    "all()": lambda labels: True,
    "has(zone)": lambda labels: "zone" in labels,
    "zone == 'a'": lambda labels: labels.get("zone") == "a",
    "zone != 'a'": lambda labels: labels.get("zone") != "a",
}
CIDRS = ("10.0.0.0/24", "10.0.1.0/24", "10.2.0.0/16", "fd00::/112", "fd01::/112")
LABELS = st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])
NAMES = ("c", "a", "e", "b", "d")


@st.composite
def pools(draw: st.DrawFn) -> list[IPPool]:
    return [
        IPPool(
            name=name,
            cidr=cidr,
            block_size=124 if ":" in cidr else 28,
            node_selector=draw(st.sampled_from(list(SELECTORS))),
            namespace_selector=draw(st.sampled_from(list(SELECTORS))),
            disabled=draw(st.booleans()) and draw(st.booleans()),
            allowed_uses=draw(st.sampled_from([frozenset({AllowedUse.WORKLOAD}), frozenset(AllowedUse), LB])),
            assignment_mode=draw(st.sampled_from([AssignmentMode.AUTOMATIC, *AssignmentMode])),
        )
        for name, cidr in zip(NAMES, CIDRS, strict=True)
        if draw(st.booleans())
    ]


LB = frozenset({AllowedUse.LOAD_BALANCER})
ASKED = st.lists(st.sampled_from([*NAMES, *CIDRS, "other"]), max_size=3)
MINE = tuple(
    str(block)
    for cidr in CIDRS
    for block in list(ipaddress.ip_network(cidr).subnets(new_prefix=124 if ":" in cidr else 28))[1::7][:3]
)
BLOCKS = st.lists(st.sampled_from(MINE), unique=True, max_size=6)
POD_CIDRS = ("10.99.0.0/24", "fd99::/64")


def inside(block: str, pool: IPPool) -> bool:
    inner, outer = ipaddress.ip_network(block), ipaddress.ip_network(pool.cidr)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


def wanted(declared: list[IPPool], subject: Subject, mine: list[str]) -> list[str] | None:
    """The CIDRs of a pod, or None: it is refused."""
    for text in subject.asked:
        named = [pool for pool in declared if text in (pool.name, pool.cidr)]
        if not named or named[0].disabled or AllowedUse.WORKLOAD not in named[0].allowed_uses:
            return None
    found: list[str] = []
    for family in (4, 6):
        those = [p for p in declared if p.family == family and AllowedUse.WORKLOAD in p.allowed_uses]
        if not those:
            continue
        order = [p for text in subject.asked for p in those if text in (p.name, p.cidr)]
        if not order:
            order = sorted(
                (
                    p
                    for p in those
                    if not p.disabled
                    and p.assignment_mode is AssignmentMode.AUTOMATIC
                    and SELECTORS[p.node_selector](subject.node)
                    and SELECTORS[p.namespace_selector](subject.namespace)
                ),
                key=lambda p: p.name,
            )
        for pool in dict.fromkeys(order):
            found += sorted((b for b in mine if inside(b, pool)), key=lambda b: int(ipaddress.ip_network(b)[0]))
    for family, pod_cidr in zip((4, 6), POD_CIDRS, strict=True):
        if not any(p.family == family and AllowedUse.WORKLOAD in p.allowed_uses for p in declared):
            found.append(pod_cidr)
    return found


@settings(max_examples=examples(2000), deadline=None)
@given(pools(), LABELS, LABELS, ASKED, BLOCKS)
def test_what_a_pod_gets(
    declared: list[IPPool], node: dict[str, str], namespace: dict[str, str], asked: list[str], mine: list[str]
) -> None:
    subject = Subject(node, namespace, tuple(asked))
    blocks = [IPAMBlock(name=block_name(cidr), cidr=cidr, node="n", node_uid="u") for cidr in mine]
    expected = wanted(declared, subject, mine)
    if expected is None:
        with pytest.raises(NoPool, match="does not exist, is disabled, or is not for pods"):
            eligible(declared, subject)
    else:
        assert list(cidrs_of(eligible(declared, subject), blocks, POD_CIDRS)) == expected


SMALL = st.sampled_from(
    [
        "10.0.0.0/24",
        "10.0.0.0/28",
        "10.0.0.4/30",
        "10.0.0.5/32",
        "10.0.0.15/32",
        "10.0.0.8/29",
        "fd00::/126",
        "0.0.0.0/0",
    ]
)


@settings(max_examples=examples(500), deadline=None)
@given(st.sampled_from(["10.0.0.0/28", "10.0.0.8/29", "10.0.0.4/32", "fd00::/125"]), st.lists(SMALL, max_size=5))
def test_reserved_addresses_are_counted_once(block: str, reserved: list[str]) -> None:
    usable = Pool.of(block)
    hosts = [ipaddress.ip_network(block)[i] for i in range(ipaddress.ip_network(block).num_addresses)]
    networks = [ipaddress.ip_network(one) for one in reserved]
    count = sum(int(host) in usable and any(host in one for one in networks) for host in hosts)
    assert (
        reserved_in(block, [IPReservation("a", tuple(reserved[:2])), IPReservation("b", tuple(reserved[2:]))])
        == count
    )


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(20, 32)), min_size=2, max_size=2, unique=True))
def test_no_two_cidrs_share_a_name(numbers: list[tuple[int, int]]) -> None:
    both = {str(ipaddress.ip_network((number, length), strict=False)) for number, length in numbers}
    assert len({block_name(cidr) for cidr in both}) == len(both)
    assert len({affinity_name("n-1", cidr) for cidr in both}) == len(both)


def test_no_family_without_pools_for_pods() -> None:
    pool = IPPool(name="lb", cidr="10.0.0.0/24", block_size=28, allowed_uses=LB)
    assert eligible([pool], Subject({}, {})) == {}
    assert eligible([IPPool(name="p", cidr="10.0.0.0/24", block_size=28, disabled=True)], Subject({}, {})) == {
        Family.V4: ()
    }
