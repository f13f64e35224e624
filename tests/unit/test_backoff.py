"""How long to wait before the next try, and how often something may come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_py.backoff import Backoff, TokenBucket


def test_delays_double_up_to_the_most_and_start_again() -> None:
    backoff = Backoff(0.1, 1.0, spread=0)
    assert [backoff.delay() for _ in range(6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    backoff.reset()
    assert backoff.delay() == pytest.approx(0.1)


@given(st.integers(0, 20), st.floats(0, 0.9), st.floats(0, 1000))
def test_delays_are_spread_and_never_below_the_servers_wish(tries: int, spread: float, wish: float) -> None:
    backoff = Backoff(0.1, 30.0, spread=spread)
    for _ in range(tries):
        backoff.delay()
    exact = min(30.0, 0.1 * 2**tries)
    assert exact * (1 - spread) * 0.999 <= backoff.delay() <= exact * (1 + spread) * 1.001
    assert backoff.delay(at_least=wish) >= wish


@given(st.lists(st.floats(0, 10), max_size=30))
def test_never_more_than_the_burst_and_what_the_time_gave(pauses: list[float]) -> None:
    now = 0.0
    bucket = TokenBucket(2.0, 5, lambda: now)
    taken = 0
    for pause in pauses:
        now += pause
        while bucket.take():
            taken += 1
    assert taken <= 5 + 2.0 * now
    now += bucket.wait() + 1e-6
    assert bucket.take()
