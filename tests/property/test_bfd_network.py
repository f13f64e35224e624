"""Two BFD sessions on a network that loses, delays and reorders: they agree, and err on neither side."""

from __future__ import annotations

import heapq
import itertools
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.bfd.packet import Packet, State, decode, encode
from bgp.bfd.session import Path, Session, Timers
from tests.support.thorough import examples

TIMERS = st.builds(
    Timers,
    st.sampled_from([100_000, 300_000, 2_000_000]),
    st.sampled_from([100_000, 300_000, 2_000_000]),
    st.integers(1, 5),
)
WEATHER = st.tuples(st.sampled_from([0.0, 0.2, 0.9, 1.0]), st.sampled_from([0.0, 0.003, 0.5]), st.floats(0.1, 15))
"""Share of packets lost, greatest delay and duration in seconds."""

ALLOWED = {
    (State.DOWN, State.INIT),
    (State.DOWN, State.UP),
    (State.INIT, State.UP),
    (State.INIT, State.DOWN),
    (State.UP, State.DOWN),
}


class Network:
    """Both ends, and the packets between them."""

    def __init__(self, timers: tuple[Timers, Timers], seed: int) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.ends = [Session(t, 10 + i, 0.0, self.random.random) for i, t in enumerate(timers)]
        self.flying: list[tuple[float, int, int, bytes]] = []
        self.number = itertools.count()
        self.heard = [0.0, 0.0]
        self.sent: list[tuple[float, State]] = [(-10.0, State.DOWN)] * 2
        self.agreed = [0, 0]
        """Intervals of sending that were in force at the last packet of each."""
        self.downs = 0

    def run(self, seconds: float, loss: float, delay: float) -> None:
        until = self.now + seconds
        while True:
            flight = self.flying[0][0] if self.flying else until
            self.now = max(self.now, min(flight, *(end.due() for end in self.ends), until))
            if self.now >= until:
                return
            if self.flying and self.flying[0][0] <= self.now:
                _, _, to, data = heapq.heappop(self.flying)
                before = self.ends[to].state
                self.ends[to].receive(decode(data), self.now)
                self.heard[to] = self.now
                self.changed(to, before)
            for index, end in enumerate(self.ends):
                before, patience = end.state, end.detection_time
                end.tick(self.now)
                self.changed(index, before)
                if end.state is not before:
                    assert self.now - self.heard[index] >= patience * 1e-6 - 1e-6, "it was heard in time"
                for packet in end.take(self.now):
                    self.send(index, packet, loss, delay)

    def send(self, index: int, packet: Packet, loss: float, delay: float) -> None:
        if not packet.final:
            at, state = self.sent[index]
            self.sent[index] = self.now, packet.state
            if packet.state is state:
                least = min(self.agreed[index], self.ends[index].transmit_interval)
                assert self.now - at >= 0.75 * least * 1e-6 - 1e-6, "too fast"
            self.agreed[index] = self.ends[index].transmit_interval
        if self.random.random() >= loss:
            arrives = self.now + self.random.random() * delay
            heapq.heappush(self.flying, (arrives, next(self.number), 1 - index, encode(packet)))

    def changed(self, index: int, before: State) -> None:
        after = self.ends[index].state
        if after is not before:
            assert (before, after) in ALLOWED
            self.downs += after is State.DOWN
        assert (self.ends[index].path is Path.UP) == (after is State.UP)


def settle(network: Network) -> None:
    """Fair weather for as long as any timer can take."""
    network.run(25, loss=0.0, delay=0.001)


@settings(max_examples=examples(60))
@given(st.tuples(TIMERS, TIMERS), st.lists(WEATHER, max_size=4), st.integers(0, 2**32))
def test_after_any_weather_both_are_up_with_what_both_want(
    timers: tuple[Timers, Timers], weather: list[tuple[float, float, float]], seed: int
) -> None:
    network = Network(timers, seed)
    for loss, delay, seconds in weather:
        network.run(seconds, loss, delay)
    settle(network)
    downs = network.downs
    for end, mine, theirs in zip(network.ends, timers, reversed(timers), strict=True):
        assert (end.state, end.path) == (State.UP, Path.UP)
        assert end.transmit_interval == max(mine.desired_min_tx, theirs.required_min_rx)
        interval = max(mine.required_min_rx, theirs.desired_min_tx)
        assert end.detection_time == theirs.detect_multiplier * interval
    # Nothing that a good network does takes a session down.
    network.run(10, loss=0.0, delay=0.001)
    assert network.downs == downs


@settings(max_examples=examples(60))
@given(st.tuples(TIMERS, TIMERS), st.integers(0, 2**32))
def test_a_dead_network_is_noticed_in_time_by_both(timers: tuple[Timers, Timers], seed: int) -> None:
    network = Network(timers, seed)
    settle(network)
    died = network.now
    patience = [end.detection_time * 1e-6 for end in network.ends]
    network.run(max(patience) + 1.0, loss=1.0, delay=0.0)
    for end, seconds in zip(network.ends, patience, strict=True):
        assert end.path is Path.FAILED
        assert end.since - died <= seconds + 0.002


@settings(max_examples=examples(60))
@given(st.tuples(TIMERS, TIMERS), st.tuples(TIMERS, TIMERS), st.floats(0, 3), st.integers(0, 2**32))
def test_timers_change_without_a_session_going_down(
    before: tuple[Timers, Timers], after: tuple[Timers, Timers], apart: float, seed: int
) -> None:
    network = Network(before, seed)
    settle(network)
    downs = network.downs
    for end, timers in zip(network.ends, after, strict=True):
        end.configure(timers)
        network.run(apart, loss=0.0, delay=0.001)
    settle(network)
    assert network.downs == downs
    assert network.ends[0].transmit_interval == max(after[0].desired_min_tx, after[1].required_min_rx)
