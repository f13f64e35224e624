"""Whatever a server answers while it is not well: soon after it is, all kinds are in sync, and none loops."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from felix_py.datastore.client import ApiError, Unreachable
from felix_py.datastore.outage import Outage, Retry
from tests.support.fakeapi import PATIENCE
from tests.support.thorough import examples

OWN, LOST = (0.8, 30.0), (0.8, 10.0)
ASKED = 20.0
SPREAD = 1.5

LOSSES = ("refused", "502", "503", "504")
NOT_NOW = ("401", "403", "500")
ALONE = ("cut", "410")
"""Answered, and then it fails: nothing that another kind's answer would change."""
KEPT = ("429", "500 later", "503 later")
PARTLY = ("200 500", "200 502")
"""A request is answered, and the next one of the same conversation refused."""

ALL = (*LOSSES, *NOT_NOW, *ALONE, *KEPT, *PARTLY)

SYNCED = "synced"

ENDLESS = 5000
"""Requests after which somebody asks in a loop."""


class Steps:
    """A clock for several threads. Time goes on only when all of them wait, to the first that is due."""

    def __init__(self, threads: int) -> None:
        self._changed = threading.Condition()
        self._threads = threads
        self._now = 0.0
        self._waiting: dict[threading.Event, float] = {}

    def now(self) -> float:
        return self._now

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        with self._changed:
            self._waiting[stop] = self._now + seconds
            due = self._waiting[stop]
            while not stop.is_set() and self._now < due:
                if not self._advance():
                    # Whoever sets the event does not notify: it knows nothing of this clock.
                    self._changed.wait(0.0005)
            del self._waiting[stop]
            return stop.is_set()

    def _advance(self) -> bool:
        if len(self._waiting) < self._threads or any(event.is_set() for event in self._waiting):
            return False
        if (due := min(self._waiting.values())) <= self._now:
            return False  # somebody is about to go on
        self._now = due
        self._changed.notify_all()
        return True

    def leave(self) -> None:
        """One thread fewer."""
        with self._changed:
            self._threads -= 1
            self._changed.notify_all()


@dataclass
class Server:
    """``says`` is what it answers to a kind at a time."""

    says: Callable[[str, float], str]
    clock: Steps
    asked: Counter[str] = field(default_factory=Counter)
    last: dict[str, str] = field(default_factory=dict)
    synced: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, kind: str) -> str:
        with self.lock:
            self.asked[kind] += 1
            word = self.says(kind, self.clock.now())
            if word == SYNCED:
                self.synced[kind] = self.clock.now()
            else:
                self.last[kind] = word
            return word


def informer(kind: str, server: Server, outage: Outage, until: float) -> None:
    """What a reflector does with its requests' answers, until it is in sync."""
    retry = Retry(OWN, outage)
    while server.clock.now() < until and server.asked.total() < ENDLESS:
        failure: ApiError | Unreachable
        match server.answer(kind):
            case "synced":
                retry.answered()
                break
            case "refused":
                failure = Unreachable("refused")
                retry.refused(failure)
            case "cut":
                retry.answered()
                failure = Unreachable("cut off in the middle")
            case word:
                if word in PARTLY:
                    retry.answered()
                    word = word.removeprefix("200 ")
                code, _, later = word.partition(" ")
                failure = ApiError(int(code), "", "", ASKED if later or code == "429" else 0.0)
                retry.refused(failure)
        retry.wait(retry.after(failure))
    server.clock.leave()


def run(kinds: int, says: Callable[[str, float], str], until: float) -> Server:
    clock = Steps(kinds)
    outage = Outage(LOST, clock)
    server = Server(says, clock)
    threads = [
        threading.Thread(target=informer, args=(f"kind-{number}", server, outage, until), daemon=True)
        for number in range(kinds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), server
    return server


def scripted(words: Mapping[str, list[str]], returns: float) -> Callable[[str, float], str]:
    """Each kind's words over and over, until the server is well."""
    times: Counter[str] = Counter()

    def says(kind: str, now: float) -> str:
        if now >= returns:
            return SYNCED
        times[kind] += 1
        return words[kind][times[kind] % len(words[kind])]

    return says


def scripts(*words: str, kinds: int = 4) -> st.SearchStrategy[dict[str, list[str]]]:
    names = [f"kind-{number}" for number in range(kinds)]
    return st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(words), min_size=1, max_size=4) for name in names}
    )


@settings(max_examples=examples(200), deadline=None)
@given(scripts(*LOSSES, *NOT_NOW), st.sampled_from(LOSSES), st.floats(1.0, 900.0))
def test_all_are_in_sync_within_one_turn_of_the_return(
    words: dict[str, list[str]], lost: str, returns: float
) -> None:
    """Also those that wait for their own time, as soon as one that takes turns has got through."""
    words["kind-0"] = [lost]
    server = run(len(words), scripted(words, returns), until=returns + 100)
    assert set(server.synced) == set(words)
    assert max(server.synced.values()) - returns <= LOST[1] * SPREAD
    assert max(server.synced.values()) - min(server.synced.values()) < 0.001, "the first has woken the others"


@settings(max_examples=examples(200), deadline=None)
@given(scripts(*ALL), st.floats(1.0, 300.0))
def test_any_failures_end_in_sync(words: dict[str, list[str]], returns: float) -> None:
    server = run(len(words), scripted(words, returns), until=returns + 100)
    assert set(server.synced) == set(words)
    for kind, at in server.synced.items():
        late = LOST[1] if server.last[kind] in LOSSES else OWN[1]
        assert at - returns <= late * SPREAD, (kind, server)


@settings(max_examples=examples(100), deadline=None)
@given(scripts(*ALL))
@example({f"kind-{number}": ["200 500"] for number in range(4)})
def test_a_server_that_is_never_well_is_not_asked_in_a_loop(words: dict[str, list[str]]) -> None:
    """Some are answered a little each time: they must not wake each other for ever."""
    time = 600.0
    server = run(len(words), scripted(words, returns=2 * time), until=time)
    own = 7 + time / (OWN[1] / 2)
    turns = 7 + time / (LOST[1] / 2)
    assert server.asked.total() <= 2 * (len(words) * own + turns), server.asked


@given(st.integers(1, 12))
@settings(max_examples=examples(50), deadline=None)
def test_more_kinds_ask_a_server_that_is_gone_no_more_often(kinds: int) -> None:
    time = 600.0
    server = run(kinds, lambda _kind, _now: "refused", until=time)
    assert server.asked.total() <= kinds + 7 + time / (LOST[1] / 2)


@pytest.mark.parametrize("kept", KEPT)
def test_a_kind_that_was_asked_to_wait_does(kept: str) -> None:
    asked: list[float] = []

    def says(kind: str, now: float) -> str:
        if kind == "kind-0":
            asked.append(now)
            return kept if now < 100 else SYNCED
        return "refused" if now < 5 else SYNCED

    server = run(4, says, until=300)
    assert len(server.synced) == 4
    assert all(after - before >= ASKED for before, after in pairwise(asked))
