"""What the watchdog takes for a loop that stands still, and what not."""

from __future__ import annotations

import asyncio
import threading
import time

from felix_py.observe.stalls import WatchedSelector
from felix_py.observe.watchdog import StandsStill


def looks(found: StandsStill, *seen: tuple[int, bool, float]) -> list[float]:
    return [found.look(*one) for one in seen]


def test_one_turn_that_lasts_as_long_as_the_limit() -> None:
    found = StandsStill(30.0, 3.0)
    assert looks(found, *((17, True, 100.0 + 3 * n) for n in range(11))) == [0.0] * 10 + [30.0]


def test_a_loop_that_waits_for_events_or_goes_on_is_well() -> None:
    found = StandsStill(30.0, 3.0)
    assert not any(looks(found, *((17, False, 100.0 + 3 * n) for n in range(100))))
    assert not any(looks(found, *((10 + n // 9, True, 500.0 + 3 * n) for n in range(100))))


def test_time_in_which_the_whole_process_was_stopped_does_not_count() -> None:
    """SIGSTOP, a suspended machine or virtual machine: the clock goes on, or jumps, and nobody looked."""
    found = StandsStill(30.0, 3.0)
    assert looks(found, (17, True, 100.0), (17, True, 103.0), (17, True, 90000.0)) == [0.0] * 3
    assert not any(looks(found, *((17, True, 90000.0 + 3 * n) for n in range(1, 7))))
    assert found.look(17, True, 90021.0) == 30.0


def test_the_first_turns_may_take_long() -> None:
    """One of them reads the kernel. Whoever starts the agent limits that: a startup probe."""
    found = StandsStill(30.0, 3.0)
    assert not any(looks(found, *((2, True, 100.0 + 3 * n) for n in range(100))))


def test_the_selector_tells_the_turn_also_while_it_goes_on() -> None:
    selector = WatchedSelector(lambda *_: None)
    seen: list[tuple[int, bool]] = []

    async def main() -> None:
        other = threading.Thread(target=lambda: seen.extend((selector.turn(), selector.turn())))
        other.start()
        other.join()
        await asyncio.sleep(0.01)
        seen.append(selector.turn())
        waiting = asyncio.get_running_loop().run_in_executor(None, until_idle)
        await waiting

    def until_idle() -> None:
        end = time.monotonic() + 20
        while selector.turn()[1]:
            assert time.monotonic() < end
            time.sleep(0.01)
        seen.append(selector.turn())

    # What is tested is the selector of the loop.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main())
    assert seen[0] == seen[1]
    assert seen[0][1]
    assert seen[2][1]
    assert seen[2][0] > seen[0][0]
    assert not seen[3][1]
