"""Adj-rib-out of one session: what is sent, and when."""

from __future__ import annotations

import pytest

from bgp.announcement import Announcement
from bgp.model import Peer
from bgp.outgoing import INTERVAL, Outgoing

PEER = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
OLD, NEW, HOST = "10.244.2.0/24", "10.244.3.0/24", "10.244.2.7/32"


def wanted(*prefixes: str) -> dict[str, Announcement]:
    return {prefix: Announcement(prefix) for prefix in prefixes}


def verbs(commands: list[str]) -> list[tuple[str, str]]:
    """("announce" or "withdraw", prefix) of each, without end-of-RIB."""
    found = []
    for command in commands:
        words = command.split()
        if "nlri" in words:
            verb = "withdraw" if "withdraw" in words else "announce"
            found += [(verb, prefix) for prefix in words[words.index("nlri") + 1 :]]
    return found


@pytest.fixture
def out() -> Outgoing:
    out = Outgoing(PEER)
    out.want(wanted(OLD))
    assert verbs(out.synchronise(established=True)) == [("announce", OLD)]
    return out


def test_a_prefix_stays_until_the_more_specific_ones_that_replace_it_are_with_the_peer(out: Outgoing) -> None:
    assert sorted(verbs(out.want(wanted(HOST, NEW)))) == [("announce", HOST), ("announce", NEW)]
    assert verbs(out.want(wanted(HOST, NEW))) == []
    assert out.postponed
    assert verbs(out.tick(100.0)) == []  # that may be at once
    assert verbs(out.tick(100.0 + INTERVAL / 2)) == []
    assert verbs(out.tick(100.0 + INTERVAL)) == [("withdraw", OLD)]
    assert not out.postponed
    assert set(out.sent) == {HOST, NEW}


def test_one_that_is_wanted_again_meanwhile_stays(out: Outgoing) -> None:
    out.want(wanted(HOST))
    assert verbs(out.want(wanted(OLD, HOST))) == []
    assert [verbs(out.tick(100.0 + number)) for number in range(3)] == [[], [], []]
    assert set(out.sent) == {OLD, HOST}


def test_others_are_withdrawn_at_once(out: Outgoing) -> None:
    assert verbs(out.want(wanted(NEW))) == [("announce", NEW), ("withdraw", OLD)]


def test_a_session_that_comes_back_meanwhile_is_told_the_rest(out: Outgoing) -> None:
    out.want(wanted(HOST))
    out.down()
    assert ("withdraw", OLD) in verbs(out.up())
    assert set(out.sent) == {HOST}
