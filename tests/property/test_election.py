"""Never two leaders at once: candidates with clocks of their own, and an API server that is slow or deaf."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felix_py.agent.election import Election, Timing
from felix_py.records import LeaderLease
from tests.support.thorough import examples

TIMING = Timing()
FASTEST = TIMING.lease_duration / TIMING.renew_deadline * 0.99
"""How much faster than the slowest clock the fastest one is, at most."""

TROUBLE = 300.0
"""Seconds after which nothing goes wrong any more."""

END = 420.0
PATIENCE = 5.0
"""Seconds for an answer."""

Asking = Generator[Callable[[], object] | float, object, None]
"""A candidate's turns: a request, which is run at the server, or seconds of its own clock to wait for."""

LOST = object()
"""Instead of an answer."""


@dataclass
class Server:
    """The Lease, and what the API promises of it: a write of another version than the present one is refused."""

    lease: LeaderLease | None = None
    versions: itertools.count[int] = field(default_factory=itertools.count)

    def get(self) -> LeaderLease | None:
        return self.lease

    def write(self, wanted: LeaderLease) -> LeaderLease | None:
        present = self.lease.version if self.lease else ""
        if wanted.version != present:
            return None
        self.lease = replace(wanted, version=str(next(self.versions) + 1))
        return self.lease


@dataclass
class Candidate:
    """An agent: its clock, and the times of the world in which it took itself for the leader."""

    election: Election
    rate: float
    offset: float
    rank: int
    cut_off: float = 0.0
    """Until when nothing reaches the server."""
    led: list[list[float]] = field(default_factory=list)

    def clock(self, now: float) -> float:
        return self.offset + now * self.rate

    def note(self, now: float) -> None:
        """Open, prolong or cut the time in which it leads."""
        left = self.election.left(self.clock(now)) / self.rate
        if left:
            if self.led and self.led[-1][1] >= now:
                self.led[-1][1] = now + left
            else:
                self.led.append([now, now + left])
        elif self.led and self.led[-1][1] > now:
            self.led[-1][1] = now


class World:
    """Candidates and server on one queue of events."""

    def __init__(self, chance: random.Random, number: int) -> None:
        self.now = 0.0
        self.server = Server()
        self._chance = chance
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.candidates = [
            Candidate(Election(f"node-{n}"), chance.choice((1.0, FASTEST)), chance.uniform(0, 1e6), n)
            for n in range(number)
        ]
        for one in self.candidates:
            self._go_on(one, self._turns(one), None)
        if chance.random() < 0.3:
            # Not before everybody has seen the Lease: from "none" to "none" again nothing can be seen.
            self._at(chance.uniform(150, TROUBLE - 60), self._delete)

    def run(self) -> None:
        while self._queue and self._queue[0][0] < END:
            self.now, _, call = heapq.heappop(self._queue)
            call()

    def _at(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), call))

    def _delete(self) -> None:
        self.server.lease = None

    def _turns(self, one: Candidate) -> Asking:
        election, server = one.election, self.server
        while True:
            answer = yield server.get
            if answer is not LOST:
                election.found(answer, one.clock(self.now))  # type: ignore[arg-type]
                one.note(self.now)
                wanted = election.attempt(one.clock(self.now), "")
                if self.now < TROUBLE and election.left(one.clock(self.now)) and self._chance.random() < 0.01:
                    wanted = election.release("")
                    one.note(self.now)
                if wanted is not None:
                    asked = one.clock(self.now)
                    written = yield lambda wanted=wanted: server.write(wanted)  # type: ignore[misc]
                    if isinstance(written, LeaderLease):
                        election.written(written, asked, one.clock(self.now))
                        one.note(self.now)
            yield election.pause(one.clock(self.now), one.rank, self._chance.random)

    def _go_on(self, one: Candidate, turns: Asking, answer: object) -> None:
        step = turns.send(answer)
        if isinstance(step, float):
            pause = step / one.rate
            if self.now < TROUBLE and self._chance.random() < 0.02:
                pause += self._chance.uniform(0, 60)  # its machine stands still
            self._at(pause, lambda: self._go_on(one, turns, None))
            return
        self._ask(one, turns, step)

    def _ask(self, one: Candidate, turns: Asking, request: Callable[[], object]) -> None:
        chance, well = self._chance, self.now >= TROUBLE
        there = chance.uniform(0, 0.1) if well or chance.random() < 0.8 else chance.uniform(0, 30)
        back = chance.uniform(0, 0.1) if well or chance.random() < 0.7 else chance.uniform(0, 6)
        if not well and chance.random() < 0.1:
            one.cut_off = self.now + chance.uniform(5, 40)
        arrives, answers = well or self.now >= one.cut_off, well or chance.random() < 0.95
        given_up = PATIENCE / one.rate

        def answer(what: object) -> None:
            self._go_on(one, turns, what)

        def serve() -> None:
            what = request()
            if answers and there + back <= given_up:
                self._at(back, lambda: answer(what))

        if arrives:
            self._at(there, serve)
        if not (arrives and answers and there + back <= given_up):
            self._at(given_up, lambda: answer(LOST))


@settings(max_examples=examples(2000), deadline=None)
@given(st.integers(0, 1 << 40), st.integers(2, 5))
def test_one_leads_at_a_time_and_one_does_in_the_end(seed: int, number: int) -> None:
    world = World(random.Random(seed), number)
    world.run()
    times = sorted((begin, end, one.rank) for one in world.candidates for begin, end in one.led)
    for (_, end, rank), (begin, _, other) in itertools.pairwise(times):
        assert rank == other or end <= begin, f"{rank} until {end}, {other} from {begin}"
    assert any(end > END - 1 for _, end, _ in times), "nobody leads, though all is well"


def test_a_release_is_taken_at_once_and_a_crash_after_the_duration() -> None:
    server, first, second = Server(), Election("a"), Election("b")
    first.found(server.get(), 0.0)
    assert first.attempt(0.0, "") is None, "a Lease that is not there may just have been deleted"
    made = first.attempt(15.0, "t")
    assert made is not None
    written = server.write(made)
    assert written is not None
    first.written(written, 15.0, 15.2)
    assert (first.left(15.2), first.left(25.0)) == (9.8, 0.0)

    second.found(server.get(), 100.0)
    assert (second.attempt(114.9, ""), second.holder) == (None, "a")
    crashed = second.attempt(115.0, "")
    assert crashed is not None
    assert crashed.transitions == 1

    free = first.release("t")
    assert free is not None
    assert first.left(15.3) == 0
    server.write(free)
    second.found(server.get(), 101.0)
    assert second.attempt(101.0, "") is not None


def test_all_agents_together_ask_little() -> None:
    """2,000 nodes: the figure of docs/ipam.md."""
    candidates = [Election(str(number)) for number in range(2000)]
    a_second = sum(1 / one.pause(0.0, rank, lambda: 0.5) for rank, one in enumerate(candidates))
    assert 3 < a_second < 4
