"""Sides and ports in words: short where many have something in common, exact where few do."""

from __future__ import annotations

import pytest

from felix_py.cli.plan_words import Names, ports_text, turn_text
from policy.impact.answers import Decision
from policy.impact.cohorts import Party, World
from policy.impact.compare import ProtocolPorts, Turn
from policy.impact.regions import Region
from policy.model import Direction, Family, Node, Pod, PolicyKind, PolicyRef, Protocol, Tier
from policy.oracle.evaluate import RuleRef

TCP, UDP, SCTP = Protocol


def pod(namespace: str, name: str, number: int, **labels: str) -> Party:
    return Party(Pod(namespace, name, labels=tuple(labels.items())), {Family.V4: f"10.0.0.{number}"})


WEB = [pod("shop", f"web-{n}", n, tier="web") for n in (1, 2, 3)]
DB = [pod("shop", "db-1", 4, tier="db")]
CLIENT = [pod("dev", "client-1", 5)]
MANY = [pod("batch", f"worker-{n}", 10 + n, app="worker") for n in range(20)]
MORE = [pod("misc", f"tool-{letter}", 40 + n, app=letter) for n, letter in enumerate("abcdefg")]
NODES = [Party(Node(f"node-{n}"), {Family.V4: f"192.168.0.{n}"}) for n in (1, 2)]
BLOCK = Party(World((Region(Family.V4, "203.0.113.0/24", ("203.0.113.16/28",)),)), {Family.V4: "203.0.113.0"})
HOLE = Party(World((Region(Family.V4, "203.0.113.16/28", ()),)), {Family.V4: "203.0.113.16"})
SIX = Party(World((Region(Family.V6, "2001:db8::/32", ()),)), {Family.V6: "2001:db8::"})
REST = Party(
    World((Region(Family.V4, "0.0.0.0/0", ("203.0.113.0/24",)), Region(Family.V6, "::/0", ("2001:db8::/32",)))),
    {Family.V4: "0.0.0.0", Family.V6: "::"},
)
PODS = [*WEB, *DB, *CLIENT, *MANY, *MORE]
ALL = [*PODS, *NODES, BLOCK, HOLE, SIX, REST]


@pytest.mark.parametrize(
    ("side", "text"),
    [
        (WEB, "shop/web (3 pods)"),
        (WEB[:2], "shop/web (2 of 3 pods: web-1, web-2)"),
        (WEB[:1], "shop/web-1"),
        ([*WEB, *DB], "shop/* (4 pods)"),
        (DB, "shop/db-1"),
        (CLIENT, "dev/client-1"),
        (MANY, "batch/worker (20 pods)"),
        (MANY[:6], "batch/worker (6 of 20 pods)"),
        (MORE[:6], "misc/tool-a, misc/tool-b, misc/tool-c and 3 more pods"),
        (PODS, "every pod (32 pods)"),
        ([*WEB, *CLIENT, *MANY, *MORE], "every pod but shop/db-1 (31 of 32)"),
        ([*CLIENT, *MANY, *MORE], "every pod but shop/* (28 of 32)"),
        ([*WEB, *CLIENT], "dev/client-1, shop/web (3 pods)"),
        (NODES, "every node (2)"),
        (NODES[:1], "node node-1"),
        ([BLOCK, HOLE, SIX, REST], "the world"),
        # No pod has an IPv6 address, so nobody misses that block.
        ([BLOCK, HOLE, REST], "the world"),
        ([BLOCK], "world 203.0.113.0/24 (except 203.0.113.16/28)"),
        ([BLOCK, HOLE], "world 203.0.113.0/24 (except 203.0.113.16/28), 203.0.113.16/28"),
        ([HOLE, REST], "the world but 203.0.113.0/24 (except 203.0.113.16/28)"),
        ([*DB, NODES[1], HOLE], "shop/db-1, node node-2, world 203.0.113.16/28"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_side(side: list[Party], text: str) -> None:
    assert Names(ALL).side(side) == text


def test_a_pod_with_two_parties_is_one_pod() -> None:
    """Two addresses of one family."""
    twice = [*DB, Party(DB[0].what, {Family.V4: "10.0.0.99"})]
    assert Names([*ALL, twice[1]]).side(twice) == "shop/db-1"


def test_addresses_of_flows() -> None:
    names = Names(ALL)
    assert [names.at(a) for a in ("10.0.0.4", "192.168.0.1", "203.0.113.0", "8.8.8.8")] == [
        "shop/db-1",
        "node node-1",
        "203.0.113.0",
        "8.8.8.8",
    ]


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        ([(TCP, 80, 80)], "80/TCP"),
        ([(TCP, 80, 80), (TCP, 8000, 8999), (UDP, 53, 53)], "80/TCP, 8000-8999/TCP, 53/UDP"),
        ([(TCP, 1, 65535)], "every TCP port"),
        ([(TCP, 1, 79), (TCP, 81, 65535)], "every TCP port but 80"),
        ([(TCP, 1, 79), (TCP, 81, 442), (TCP, 444, 65535)], "every TCP port but 80, 443"),
        ([(p, 1, 65535) for p in Protocol], "every port"),
        ([(TCP, 1, 79), (TCP, 81, 65535), (UDP, 1, 65535), (SCTP, 1, 65535)], "every port but 80/TCP"),
        ([(UDP, 1, 65535), (SCTP, 1, 65535)], "every port but every TCP port"),
        ([(TCP, 1024, 65535)], "1024-65535/TCP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_ports(ranges: list[tuple[Protocol, int, int]], text: str) -> None:
    assert ports_text([ProtocolPorts(*one) for one in ranges]) == text


def test_reasons() -> None:
    own = PolicyRef(PolicyKind.NETWORK, "shop", "db")
    guard = PolicyRef(PolicyKind.CLUSTER, "", "guard")
    free = Decision(True)
    allowed = Decision(True, Tier.NETWORK, RuleRef(own, 1))
    isolated = Decision(False, Tier.NETWORK, None, (own,))
    denied = Decision(False, Tier.ADMIN, RuleRef(guard, 0, "no-telnet"))
    found = [
        turn_text(Turn(Direction.INGRESS, before, after))
        for before, after in ((allowed, isolated), (free, denied), (denied, free))
    ]
    assert found == [
        "by ingress of NetworkPolicy shop/db: no rule allows it; before: NetworkPolicy shop/db ingress[1]",
        'by ClusterNetworkPolicy guard ingress[0] "no-telnet"; before: no policy decides ingress',
        'since no policy decides ingress; before: ClusterNetworkPolicy guard ingress[0] "no-telnet"',
    ]
