"""The states of a session, and what each says of the routes that the peer has not repeated yet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgp.channel import Channel
from bgp.decision import Path
from bgp.events import Down, EndOfRib, Event, GracefulRestart, MalformedUpdate, Open, Refresh, Up, Update
from bgp.model import Peer
from bgp.rib import Rib
from bgp.session import SETTLE, TRANSITIONS, Input, Session, State

PEER = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
ROUTE = Update(PEER.address, (("10.244.7.0/24", Path("10.9.0.2", (65000,), 1)),), ())
UP, END = Up(PEER.address), EndOfRib(PEER.address, 4)
DOWN = Down(PEER.address, "shutting down")
BEGIN, REFRESHED = Refresh(PEER.address, 4, begin=True), Refresh(PEER.address, 4, begin=False)
BOTH = replace(PEER, families=(4, 6), next_hops=("10.9.0.1", "fd09::1"))
ROUTE6 = Update(PEER.address, (("fd44:7::/64", Path("fd09::2", (65000,), 1)),), ())
END6 = EndOfRib(PEER.address, 6)
BEGIN6, REFRESHED6 = Refresh(PEER.address, 6, begin=True), Refresh(PEER.address, 6, begin=False)


def test_malformed_attributes_are_said_once_in_a_while() -> None:
    channel = Channel()
    session = Session(PEER, Rib(), channel, 0.0)
    malformed = MalformedUpdate(PEER.address, "treat-as-withdraw")
    for now in (1.0, 2.0, 300.0, 602.0):
        session.receive(malformed, now)
    said = [note.detail for note in channel.take_notes() if note.warning]
    assert said == ["treat-as-withdraw", "treat-as-withdraw"]


def test_every_session_can_end_and_come_up_again() -> None:
    for state in State:
        assert TRANSITIONS[state, Input.UP] is State.LOADING
        assert TRANSITIONS.get((state, Input.DOWN), state) is State.DOWN
    assert set(TRANSITIONS.values()) == set(State)


@pytest.mark.parametrize(
    ("events", "state", "routes"),
    [
        ([UP, ROUTE], State.LOADING, 1),
        ([UP, ROUTE, END], State.COMPLETE, 1),
        ([UP, ROUTE, END, DOWN], State.DOWN, 1),
        ([UP, ROUTE, END, DOWN, UP], State.LOADING, 1),
        ([UP, ROUTE, END, DOWN, UP, END], State.COMPLETE, 0),
        ([UP, ROUTE, END, UP, END], State.COMPLETE, 0),
        ([UP, ROUTE, END, BEGIN], State.REFRESHING, 1),
        ([UP, ROUTE, END, BEGIN, END], State.REFRESHING, 1),
        ([UP, ROUTE, END, BEGIN, ROUTE, REFRESHED], State.COMPLETE, 1),
        ([UP, ROUTE, END, BEGIN, REFRESHED], State.COMPLETE, 0),
        ([UP, ROUTE, END, BEGIN, ROUTE, BEGIN, REFRESHED], State.COMPLETE, 0),
        ([UP, ROUTE, BEGIN, REFRESHED], State.LOADING, 1),
        ([UP, ROUTE, BEGIN, REFRESHED, END], State.COMPLETE, 0),
        ([UP, ROUTE, BEGIN, END], State.REFRESHING, 1),
        ([UP, ROUTE, BEGIN, END, REFRESHED], State.COMPLETE, 0),
        ([UP, ROUTE, END, REFRESHED], State.COMPLETE, 1),  # RFC 7313 4: no end without a begin
        ([END], State.DOWN, 0),
    ],
)
def test_routes_stay_until_the_peer_has_told_everything(events: list[Event], state: State, routes: int) -> None:
    rib = Rib()
    session = Session(PEER, rib, Channel(), 0.0)
    for event in events:
        session.receive(event, 1.0)
        session.confirm()
    assert (session.state, rib.count(PEER.address)) == (state, routes)


@pytest.mark.parametrize(
    ("events", "state", "routes"),
    [
        ([UP, ROUTE, ROUTE6, END], State.LOADING, 2),
        ([UP, ROUTE, ROUTE6, END, END6], State.COMPLETE, 2),
        ([UP, ROUTE, ROUTE6, END, END6, DOWN, UP, END6], State.LOADING, 2),
        ([UP, ROUTE, ROUTE6, END, END6, DOWN, UP, END6, ROUTE, END], State.COMPLETE, 1),
        ([UP, ROUTE, ROUTE6, END, END6, BEGIN, REFRESHED], State.COMPLETE, 1),
        ([UP, ROUTE, ROUTE6, END, END6, BEGIN, REFRESHED6, ROUTE, REFRESHED], State.COMPLETE, 2),
        ([UP, ROUTE, ROUTE6, END, END6, BEGIN, BEGIN6, REFRESHED], State.REFRESHING, 2),
        ([UP, ROUTE, ROUTE6, END, END6, BEGIN, BEGIN6, REFRESHED, ROUTE6, REFRESHED6], State.COMPLETE, 1),
        ([Open(PEER.address, "192.0.2.9", None, frozenset({4})), UP, ROUTE, END], State.COMPLETE, 1),
    ],
)
def test_each_family_of_a_session_is_told_by_itself(events: list[Event], state: State, routes: int) -> None:
    rib = Rib()
    session = Session(BOTH, rib, Channel(), 0.0)
    for event in events:
        session.receive(event, 1.0)
        session.confirm()
    assert (session.state, rib.count(PEER.address)) == (state, routes)


@pytest.mark.parametrize(
    ("kept", "again", "left"),
    [
        ({4: True, 6: True}, {4: True, 6: True}, 2),
        ({4: True}, {4: True}, 1),
        ({}, {}, 0),
        ({4: True, 6: True}, {4: True, 6: False}, 1),
        ({4: True, 6: True}, {}, 0),
    ],
)
def test_rfc4724_4_2_each_family_is_kept_or_not_as_the_peer_says(
    kept: dict[int, bool], again: dict[int, bool], left: int
) -> None:
    rib = Rib()
    session = Session(BOTH, rib, Channel(), 0.0)
    both = frozenset({4, 6})
    for restart in (kept, again):
        session.receive(Open(PEER.address, "192.0.2.9", GracefulRestart(120, restart), both), 1.0)
        session.up(1.0)
        if restart is again:
            break
        session.receive(ROUTE, 1.0)
        session.receive(ROUTE6, 1.0)
        session.down("closing connection", 2.0)
        assert rib.count(PEER.address) == len(kept)
    assert rib.count(PEER.address) == left


def test_a_family_that_is_not_configured_is_not_taken() -> None:
    rib = Rib()
    session = Session(PEER, rib, Channel(), 0.0)
    session.up(1.0)
    session.receive(ROUTE6, 1.0)
    assert rib.count(PEER.address) == 0


def test_a_peer_that_never_says_end_of_rib_has_told_all_after_a_while() -> None:
    session = Session(PEER, Rib(), Channel(), 0.0)
    session.up(5.0)
    session.tick(5.0 + SETTLE - 0.1)
    assert not session.told
    session.tick(5.0 + SETTLE)
    assert session.told
