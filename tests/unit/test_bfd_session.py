"""BFD sessions: RFC 5880's table of states, and what each rule of 6.8 says of timers, polls and the path."""

from __future__ import annotations

import pytest

from bgp.bfd.packet import Diagnostic, Packet, State
from bgp.bfd.session import SLOW, Path, Session, Timers

TIMERS = Timers(desired_min_tx=300_000, required_min_rx=300_000, detect_multiplier=3)
START = 1000.0


def session(timers: Timers = TIMERS, *, announce: bool = False, random: float = 0.5) -> Session:
    return Session(timers, 1, START, lambda: random, announce=announce)


def packet(
    state: State,
    *,
    min_tx: int = 300_000,
    min_rx: int = 300_000,
    multiplier: int = 3,
    poll: bool = False,
    final: bool = False,
    demand: bool = False,
    authenticated: bool = False,
) -> Packet:
    return Packet(
        state=state,
        my_discriminator=2,
        your_discriminator=1,
        desired_min_tx=min_tx,
        required_min_rx=min_rx,
        detect_multiplier=multiplier,
        poll=poll,
        final=final,
        demand=demand,
        authenticated=authenticated,
    )


def brought_to(state: State) -> Session:
    new = session()
    match state:
        case State.INIT:
            new.receive(packet(State.DOWN), START)
        case State.UP:
            new.receive(packet(State.INIT), START)
        case State.ADMIN_DOWN:
            new.disable(START)
    assert new.state is state
    return new


@pytest.mark.parametrize(
    ("before", "received", "after"),
    [
        # RFC 5880, 6.8.6. AdminDown takes no notice of anything.
        (State.ADMIN_DOWN, State.ADMIN_DOWN, State.ADMIN_DOWN),
        (State.ADMIN_DOWN, State.DOWN, State.ADMIN_DOWN),
        (State.ADMIN_DOWN, State.INIT, State.ADMIN_DOWN),
        (State.ADMIN_DOWN, State.UP, State.ADMIN_DOWN),
        (State.DOWN, State.ADMIN_DOWN, State.DOWN),
        (State.DOWN, State.DOWN, State.INIT),
        (State.DOWN, State.INIT, State.UP),
        (State.DOWN, State.UP, State.DOWN),
        (State.INIT, State.ADMIN_DOWN, State.DOWN),
        (State.INIT, State.DOWN, State.INIT),
        (State.INIT, State.INIT, State.UP),
        (State.INIT, State.UP, State.UP),
        (State.UP, State.ADMIN_DOWN, State.DOWN),
        (State.UP, State.DOWN, State.DOWN),
        (State.UP, State.INIT, State.UP),
        (State.UP, State.UP, State.UP),
    ],
)
def test_states(before: State, received: State, after: State) -> None:
    ours = brought_to(before)
    ours.receive(packet(received), START)
    assert ours.state is after


@pytest.mark.parametrize("state", [State.INIT, State.UP])
def test_silence_ends_a_session_after_the_detection_time(state: State) -> None:
    ours = brought_to(state)
    assert ours.detection_time == 900_000
    ours.tick(START + 0.899)
    assert ours.state is state
    ours.tick(START + 0.901)
    assert (ours.state, ours.diagnostic) == (State.DOWN, Diagnostic.DETECTION_TIME_EXPIRED)
    assert ours.remote_discriminator == 0
    assert ours.path is (Path.FAILED if state is State.UP else Path.UNKNOWN)


def test_silence_is_no_failure_of_a_session_that_was_never_up() -> None:
    ours = session()
    ours.tick(START + 3600)
    assert (ours.state, ours.path) == (State.DOWN, Path.UNKNOWN)


def test_the_peer_says_that_it_hears_nothing() -> None:
    ours = brought_to(State.UP)
    ours.receive(packet(State.DOWN), START + 1)
    assert (ours.path, ours.since) == (Path.FAILED, START + 1)
    assert ours.diagnostic == Diagnostic.NEIGHBOR_SIGNALED_DOWN
    ours.receive(packet(State.DOWN), START + 2)
    ours.receive(packet(State.UP), START + 3)
    assert (ours.state, ours.path, ours.diagnostic) == (State.UP, Path.UP, Diagnostic.NONE)


def test_admin_down_says_nothing_of_the_path() -> None:
    theirs, ours = brought_to(State.UP), brought_to(State.UP)
    theirs.receive(packet(State.ADMIN_DOWN), START)
    assert (theirs.state, theirs.path) == (State.DOWN, Path.UNKNOWN)
    ours.disable(START)
    (sent,) = ours.take(START)
    assert (sent.state, sent.diagnostic) == (State.ADMIN_DOWN, Diagnostic.ADMINISTRATIVELY_DOWN)
    assert ours.path is Path.UNKNOWN


def test_the_first_packet_of_another_life_says_admin_down() -> None:
    ours = session(announce=True)
    states = [sent.state for at in (0.0, 1.0, 2.0) for sent in ours.take(START + at)]
    assert states == [State.ADMIN_DOWN, State.DOWN, State.DOWN]


def test_it_is_slow_until_it_is_up_and_fast_once_the_peer_is() -> None:
    ours = session(Timers(50_000, 20_000, 5))
    assert ours.transmit_interval == SLOW
    (first,) = ours.take(START)
    assert (first.desired_min_tx, first.required_min_rx, first.poll) == (SLOW, 20_000, False)
    ours.receive(packet(State.INIT, min_tx=SLOW, min_rx=70_000), START)
    (up,) = ours.take(START)
    # The new interval is told by a Poll Sequence; sending more often than one has said needs no answer to it.
    assert (up.state, up.poll, up.desired_min_tx) == (State.UP, True, 50_000)
    assert ours.transmit_interval == 70_000
    ours.receive(packet(State.UP, min_rx=30_000, final=True), START)
    assert ours.transmit_interval == 50_000
    assert [sent.poll for sent in ours.take(START + 1)] == [False]


def test_a_longer_interval_waits_for_the_final_and_a_shorter_one_for_the_peer_does_too() -> None:
    ours = brought_to(State.UP)
    ours.receive(packet(State.UP, final=True), START)
    ours.configure(Timers(600_000, 100_000, 3))
    ours.receive(packet(State.UP, min_tx=50_000), START)
    assert (ours.transmit_interval, ours.detection_time) == (300_000, 900_000)
    ours.receive(packet(State.UP, min_tx=50_000, final=True), START)
    assert (ours.transmit_interval, ours.detection_time) == (600_000, 300_000)


def test_a_final_for_values_of_before_is_not_taken_for_one_for_those_of_now() -> None:
    ours = brought_to(State.UP)
    assert ours.take(START)[-1].poll
    ours.configure(Timers(700_000, 300_000, 3))
    ours.receive(packet(State.UP, final=True), START)
    assert ours.transmit_interval == 300_000
    assert ours.take(START + 0.3)[-1].poll
    ours.receive(packet(State.UP, final=True), START)
    assert ours.transmit_interval == 700_000


def test_a_poll_is_answered_at_once_and_besides() -> None:
    ours = brought_to(State.UP)
    ours.take(START)
    due = ours.due()
    ours.receive(packet(State.UP, poll=True), START + 0.01)
    (answer,) = ours.take(START + 0.01)
    assert (answer.final, answer.poll) == (True, False)
    assert ours.due() == due


@pytest.mark.parametrize(("multiplier", "least", "most"), [(3, 0.75, 1.0), (1, 0.75, 0.9)])
def test_jitter(multiplier: int, least: float, most: float) -> None:
    for random, share in ((0.0, least), (1.0, most)):
        ours = session(Timers(SLOW, SLOW, multiplier), random=random)
        ours.take(START)
        assert ours.due() == pytest.approx(START + share)


def test_a_peer_that_wants_no_packets_gets_none() -> None:
    ours = brought_to(State.UP)
    ours.receive(packet(State.UP, min_rx=0, final=True), START)
    ours.take(START)
    assert ours.transmit_interval == 0
    assert not ours.take(START + 0.8)
    ours.receive(packet(State.UP, min_rx=300_000), START + 0.8)
    assert ours.take(START + 0.8)


def test_a_peer_in_demand_mode_gets_none_but_polls() -> None:
    ours = brought_to(State.UP)
    ours.receive(packet(State.UP, final=True), START)
    ours.receive(packet(State.UP, demand=True), START)
    ours.take(START)
    assert ours.transmit_interval == 0
    ours.configure(Timers(400_000, 300_000, 3))
    assert ours.take(START + 0.5)[0].poll


def test_authentication_that_nobody_asked_for_is_discarded() -> None:
    ours = session()
    assert not ours.receive(packet(State.DOWN, authenticated=True), START)
    assert ours.state is State.DOWN
