"""The states of a session, and what each says of the routes that the peer has not repeated yet."""

from __future__ import annotations

import pytest

from bgp.channel import Channel
from bgp.decision import Path
from bgp.model import Peer
from bgp.protocol import Down, EndOfRib, Event, Refresh, Up, Update
from bgp.rib import Rib
from bgp.session import SETTLE, TRANSITIONS, Input, Session, State

PEER = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
ROUTE = Update(PEER.address, (("10.244.7.0/24", Path("10.9.0.2", (65000,), 1)),), ())
UP, END = Up(PEER.address), EndOfRib(PEER.address)
DOWN = Down(PEER.address, "shutting down")
BEGIN, REFRESHED = Refresh(PEER.address, begin=True), Refresh(PEER.address, begin=False)


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


def test_a_peer_that_never_says_end_of_rib_has_told_all_after_a_while() -> None:
    session = Session(PEER, Rib(), Channel(), 0.0)
    session.up(5.0)
    session.tick(5.0 + SETTLE - 0.1)
    assert not session.told
    session.tick(5.0 + SETTLE)
    assert session.told
