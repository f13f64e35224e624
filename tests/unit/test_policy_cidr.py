"""Prefix arithmetic against brute force over a few addresses."""

from __future__ import annotations

import ipaddress
import itertools
import random

import pytest

from policy import cidr
from policy.model import Family, IPBlock
from policy.syntax import strictly_inside

BASE = {Family.V4: "198.51.100.0/27", Family.V6: "2001:db8::/123"}


def subnets(family: Family) -> list[str]:
    base = ipaddress.ip_network(BASE[family])
    return [
        str(net) for length in range(base.prefixlen, family.bits + 1) for net in base.subnets(new_prefix=length)
    ]


def inside(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("seed", range(40))
def test_blocks_less_their_excepts(family: Family, seed: int) -> None:
    chance = random.Random(seed)
    choices = subnets(family)
    blocks = []
    for _ in range(chance.randint(1, 3)):
        outer = chance.choice(choices)
        inner = [net for net in choices if strictly_inside(net, outer)]
        blocks.append(IPBlock(outer, tuple(chance.sample(inner, min(len(inner), chance.randint(0, 3))))))
    spans = cidr.nets(blocks, family)
    members = cidr.to_cidrs(spans, family)
    for ip in ipaddress.ip_network(BASE[family]):
        address = str(ip)
        wanted = any(inside(address, b.cidr) and not any(inside(address, e) for e in b.excepts) for b in blocks)
        assert cidr.covers(spans, address) is wanted
        # No member overlaps another, and together they are exact.
        assert sum(inside(address, member) for member in members) == wanted
    assert all(last + 1 < first for (_, last), (first, _) in itertools.pairwise(spans))
    # And no two of them are the halves of one: they are the fewest.
    parents = [ipaddress.ip_network(member).supernet() for member in members]
    assert len(set(parents)) == len(parents)


@pytest.mark.parametrize(
    ("family", "blocks", "members"),
    [
        (Family.V4, [IPBlock("0.0.0.0/0")], ("0.0.0.0/1", "128.0.0.0/1")),
        (Family.V6, [IPBlock("::/0")], ("::/1", "8000::/1")),
        (Family.V4, [IPBlock("0.0.0.0/0", ("0.0.0.0/1",))], ("128.0.0.0/1",)),
        (Family.V4, [IPBlock("0.0.0.0/1"), IPBlock("128.0.0.0/1")], ("0.0.0.0/1", "128.0.0.0/1")),
        (Family.V4, [IPBlock("10.0.0.0/8", ("10.0.0.0/9", "10.128.0.0/9"))], ()),
        (Family.V4, [IPBlock("10.0.0.0/30", ("10.0.0.1/32",))], ("10.0.0.0", "10.0.0.2/31")),
        (Family.V6, [IPBlock("fd00::1/128")], ("fd00::1",)),
        (Family.V4, [IPBlock("255.255.255.255/32")], ("255.255.255.255",)),
        (Family.V4, [IPBlock("10.0.0.0/8", ("10.1.0.0/16",)), IPBlock("10.1.0.0/16")], ("10.0.0.0/8",)),
        (Family.V6, [IPBlock("10.0.0.0/8")], ()),
    ],
)
def test_members_of_a_set(family: Family, blocks: list[IPBlock], members: tuple[str, ...]) -> None:
    assert cidr.to_cidrs(cidr.nets(blocks, family), family) == members
