"""``felix-py bgp trace``: what is told of BGP's events, to whom, and what becomes of a reader who is too slow."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgp.model import Peer
from bgp.trace import Kind, Traced
from felix_py.cli.bgp_trace import text
from felix_py.observe.bgp_trace import BACKLOG, MOST_FOLLOWERS, BgpTrace, Listener, TooManyFollowers, Wanted
from tests.support.bgp_scene import V4, Scene

TOR = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
PREFIX = "10.244.7.0/24"


class Told:
    """The source of events, of which a follower is to be the only listener."""

    def __init__(self) -> None:
        self.listener: Listener | None = None
        self.trace = BgpTrace(self._listen)

    def _listen(self, listener: Listener | None) -> None:
        self.listener = listener

    def tell(self, events: Iterable[Traced]) -> None:
        for event in events:
            assert self.listener
            self.listener(event)


def numbered(number: int) -> Traced:
    return Traced(Kind.BEST, "", PREFIX, str(number))


def test_everything_that_happens_is_told_in_order() -> None:
    scene, told = Scene(TOR), list[Traced]()
    scene.control.channel.trace = told.append
    scene.attach()
    scene.control.announce([V4])
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.exabgp.announce(TOR.address, PREFIX, ("10.9.0.2", (65000, 65007), 0))
    scene.talk()
    scene.exabgp.withdraw(TOR.address, PREFIX)
    scene.talk()
    scene.exabgp.down(TOR.address, "peer reset")
    scene.talk()
    mine = [(e.kind, e.peer, e.prefix, e.detail) for e in told if "show" not in e.detail]
    update = "next hop 10.9.0.2, AS path 65000 65007, origin IGP, local preference 100, MED 0"
    wanted = [
        (Kind.SESSION, TOR.address, "", "up"),
        (Kind.ANNOUNCE, TOR.address, V4, "next-hop self"),
        (Kind.SESSION, TOR.address, "", "told: announce eor ipv4 unicast"),
        (Kind.UPDATE, TOR.address, PREFIX, update),
        (Kind.BEST, "", PREFIX, "by 10.9.0.2"),
        (Kind.WITHDRAW, TOR.address, PREFIX, ""),
        (Kind.BEST, "", PREFIX, "not routed any more"),
        (Kind.SESSION, TOR.address, "", "down: peer reset"),
    ]
    assert [one for one in mine if one in wanted] == wanted, mine
    scene.control.channel.trace = None
    before = list(told)
    scene.exabgp.up(TOR.address)
    scene.talk()
    assert told == before, "nobody looks on any more"


async def test_a_slow_reader_loses_the_newest_and_is_told_how_many() -> None:
    told = Told()
    with told.trace.follow(Wanted()) as slow, told.trace.follow(Wanted()) as quick:
        told.tell(map(numbered, range(BACKLOG)))
        assert len(await quick.take()) == BACKLOG
        told.tell(map(numbered, range(BACKLOG, BACKLOG + 7)))
        assert [one["detail"] for one in await quick.take()] == [str(BACKLOG + n) for n in range(7)]
        *kept, lost = await slow.take()
        assert [one["detail"] for one in kept] == [str(n) for n in range(BACKLOG)]
        assert (lost["kind"], lost["count"]) == ("lost", 7)
        assert text(lost).endswith("lost     7 events found no room")
        told.tell([numbered(1)])
        assert [one["detail"] for one in await slow.take()] == ["1"], "told once"
    assert told.listener is None, "what nobody hears costs nothing"


def test_followers_are_limited() -> None:
    told = Told()
    followers = [told.trace.follow(Wanted()) for _ in range(MOST_FOLLOWERS)]
    for one in followers:
        one.__enter__()
    with pytest.raises(TooManyFollowers), told.trace.follow(Wanted()):
        pass
    followers.pop().__exit__(None, None, None)
    with told.trace.follow(Wanted()):
        pass
    assert told.listener is not None


ADDRESSES = st.integers(0, 7).map(lambda n: f"10.0.0.{n}")
CIDRS = st.tuples(st.integers(0, 7), st.integers(28, 32)).map(
    lambda p: str(ipaddress.ip_network(f"10.0.0.{p[0]}/{p[1]}", strict=False))
)


@given(asked=ADDRESSES | CIDRS, peer=ADDRESSES | st.just(""), prefix=CIDRS | st.just(""))
def test_what_is_asked_for(asked: str, peer: str, prefix: str) -> None:
    network = ipaddress.IPv4Network(prefix) if prefix else None
    if "/" in asked:
        meant = network is not None and network.subnet_of(ipaddress.IPv4Network(asked))
    else:
        meant = peer == asked or (network is not None and ipaddress.IPv4Address(asked) in network)
    event = Traced(Kind.UPDATE, peer, prefix, "")
    assert Wanted(asked).matches(event) == meant
    assert Wanted().matches(event)


def test_what_is_no_address_is_refused() -> None:
    for wrong in ("tor", "10.0.0.1/24", "10.0.0.0/33", "fe80::1%"):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            Wanted(wrong)
