"""When something that is asked for again and again is done."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_py.pace import Pace, Paced, sparingly


def rules() -> Pace:
    return Pace(quiet=0.5, most=5.0, gap=3.0)


def turns(pace: Pace, asked: list[float], work: float = 0.0) -> list[float]:
    """When it is done, if it is asked for at these times; each turn takes as long as its work."""
    begun: list[float] = []
    waiting = sorted(asked)
    now = 0.0
    while waiting or pace.due is not None:
        due = pace.due
        if waiting and (due is None or waiting[0] <= max(due, now)):
            pace.ask(waiting.pop(0))
            continue
        assert due is not None
        now = max(now, due)
        begun.append(now)
        pace.begun()
        while waiting and waiting[0] <= now + work:
            pace.ask(waiting.pop(0))
        now += work
        pace.ended(now, work)
    return begun


def test_nothing_is_due_before_anybody_asks() -> None:
    assert rules().due is None


def test_half_a_second_after_the_last_of_a_burst() -> None:
    assert turns(rules(), [100.0, 100.2, 100.4]) == [100.9]


def test_five_seconds_after_the_first_at_the_latest() -> None:
    assert turns(rules(), [100.0 + n * 0.25 for n in range(40)])[0] == 105.0


def test_a_constant_stream_gets_a_turn_every_few_seconds() -> None:
    begun = turns(rules(), [n * 0.1 for n in range(600)])
    gaps = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert 12 <= len(begun) <= 13
    assert all(3.0 <= gap <= 5.2 for gap in gaps)


def test_a_change_after_a_turn_waits_for_the_gap_and_is_not_forgotten() -> None:
    assert turns(rules(), [10.0, 11.0]) == [10.5, 13.5]


def test_what_is_asked_for_while_it_is_being_done_is_done_again() -> None:
    assert turns(Pace(0.0, 0.0, 0.2), [10.0, 10.05], work=0.1) == [10.0, 11.1]


def test_work_that_takes_long_is_done_seldom() -> None:
    for work, apart in ((0.7, 7.7), (20.0, 80.0)):
        begun = turns(rules(), [n * 0.1 for n in range(6000)], work)
        assert [later - earlier for earlier, later in itertools.pairwise(begun)] == pytest.approx(
            [apart] * (len(begun) - 1)
        )
        assert len(begun) > 5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 2))
def test_every_question_is_answered_in_time(asked: list[float], work: float) -> None:
    """A turn begins after each question, and no later than the longest wait plus the longest gap."""
    begun = turns(rules(), asked, work)
    for question in asked:
        answers = [turn for turn in begun if turn >= question]
        assert answers
        assert min(answers) - question <= 5.0 + work + max(3.0, min(10 * work, 60.0)) + 1e-6


async def test_the_runner_does_it_for_all_who_asked() -> None:
    done: list[int] = []
    asked = 0
    finished = asyncio.Event()

    async def act() -> float:
        done.append(asked)
        finished.set()
        return 0.0

    paced = Paced(Pace(0.0, 0.0, 0.0))
    task = asyncio.create_task(paced.run(act))
    await asyncio.sleep(0)
    assert done == []
    for _ in range(3):
        asked += 1
        paced.ask()
    await finished.wait()
    assert done == [3]
    finished.clear()
    asked += 1
    paced.ask()
    await finished.wait()
    assert done == [3, 4]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_done_for_ever_gets_a_bounded_share_and_outlasts_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gaps: list[float] = []
    works: list[float | OSError] = [0.001, 0.0, 0.02, OSError("the kernel is busy"), 9.0]

    async def sleep(seconds: float) -> None:
        gaps.append(seconds)

    async def act() -> float:
        if not works:
            raise asyncio.CancelledError
        work = works.pop(0)
        if isinstance(work, OSError):
            raise work
        return work

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await sparingly(act)
    assert gaps == [3.0, 3.0, 3.0, 10.0, 10.0, 60.0]
