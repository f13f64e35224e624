"""What ``felix-py denies`` cannot know, and says: what was before, what is kept no longer, what was too much."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from felix_py.desired.deny_log import HOST_DROP
from tests.unit.test_denies_command import Agent, denies, get, start

__all__ = ["start"]

SINCE = r"since (\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d"


def test_nothing_denied_is_said_with_the_time_for_which_that_is_known(start: Callable[..., Agent]) -> None:
    """An agent that has just begun to read knows of nothing before."""
    agent = start()
    known = f"nothing was denied here, as far as is known: {SINCE}"
    for words in ([], ["--since", "1h"]):
        assert re.fullmatch(f"felix-py denies: {known}\n", denies(agent.port, *words).stderr)
    agent.ahead = 3700.0
    assert denies(agent.port, "--since", "1h").stderr == "felix-py denies: nothing was denied here\n"
    done = denies(agent.port, "--since", "1h", "--pod", "shop/db")
    assert done.stderr == "felix-py denies: nothing like that was denied here\n"
    assert denies(agent.port, "--limit", "0").stderr == ""


def test_age_is_not_told_by_a_clock_that_jumps(start: Callable[..., Agent]) -> None:
    """The packets' own times are of 1970, as before a clock was set."""
    agent = start()
    agent.deny(HOST_DROP)
    done = denies(agent.port, "--since", "5m")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert "what was denied before" in done.stderr
    agent.ahead = 400.0
    done = denies(agent.port, "--since", "5m")
    assert (done.stdout, done.stderr) == ("", "felix-py denies: nothing was denied here\n")
    assert len(denies(agent.port, "--since", "10m").stdout.splitlines()) == 2


def test_what_is_kept_no_longer_and_what_was_too_much_is_said(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.ahead = 1000.0
    for number in range(1100):
        agent.deny(HOST_DROP, port=number + 1)
        agent.ahead += 0.1 if number < 600 else 0.0  # then faster than events are made
    done = denies(agent.port, "--since", "10m")
    assert done.returncode == 0
    missed = int(json.loads(get(agent.port, "/denies")[1])["missed"])
    assert missed == agent.denies.suppressed > 0
    assert f"{missed} more packets have no event: too many came at once" in done.stderr
    agent.ahead += 700.0
    assert denies(agent.port, "--since", "10m").stderr == "felix-py denies: nothing was denied here\n"


def test_the_events_that_made_room_are_not_taken_for_all(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.ahead = 1000.0
    for number in range(1001):
        agent.deny(HOST_DROP, port=number + 1)
        agent.ahead += 0.1
    done = denies(agent.port, "--since", "10m", "-o", "json")
    assert len(done.stdout.splitlines()) == 1000
    assert re.fullmatch(r"felix-py denies: what was denied before .* is not known any more, .*\n", done.stderr)
    assert denies(agent.port, "--since", "1m", "-o", "json").stderr == ""


def test_nothing_is_claimed_of_a_log_that_is_not_read(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.unavailable = "not started yet"
    done = denies(agent.port)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "felix-py denies: denied packets are not read at present: not started yet\n"
