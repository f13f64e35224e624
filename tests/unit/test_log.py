"""The log: whoever logs is held up by nothing that its reader does; lines are bounded in every way."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from felix_py import log
from felix_py.log import LogFormat, LogLevel
from felix_py.log_limits import RateLimit, shorten
from felix_py.log_writer import LineWriter

PATIENCE = 60

PROGRAM = """
import os, sys, time
from felix_py import log
log.configure(log.LogLevel.INFO, log.LogFormat.JSON, node="n1")
logger = log.get("test")
for number in range(int(sys.argv[1])):
    logger.info(f"line {number}", padding="x" * 1000)
started = time.monotonic()
log.flush()
print(log.lost()["reader"], log.lost()["rate"], flush=True)
os._exit(0)
"""


def logging_to(stderr: int, lines: int) -> tuple[int, int]:
    """How many lines a process lost that logged so many; it must come to its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(lines)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    lost, limited = done.stdout.split()
    return int(lost), int(limited)


def test_a_reader_that_has_stopped() -> None:
    """Before, the process stood still for ever."""
    read, write = os.pipe()
    lost, limited = logging_to(write, 5000)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        shown = [json.loads(line) for line in pipe.read().splitlines()[:-1]]
    assert 0 < len(shown) < 100
    assert 5000 - 1200 < lost < 5000  # all but the queue's megabyte
    assert limited == 0


def test_a_terminal_that_nobody_reads() -> None:
    ours, theirs = pty.openpty()
    lost, _ = logging_to(theirs, 5000)
    assert lost
    os.close(ours)
    os.close(theirs)


def test_a_reader_that_has_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    assert logging_to(write, 10) == (10, 0)
    os.close(write)


def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        assert logging_to(full.fileno(), 10) == (10, 0)


def test_a_reader_in_time_gets_all_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "700"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == [f"line {n}" for n in range(700)]
    assert done.stdout.split() == ["0", "0"]


def test_when_lines_flow_again_one_says_how_many_are_missing() -> None:
    read, write = os.pipe()
    writer = LineWriter(write, lambda lost: f"{lost} lost", most=1000)
    for number in range(3000):
        writer.write(f"{number:099}")
    assert writer.lost > 2000
    got, told = "", 0
    numbers: list[int] = []
    while len(numbers) + told < 3000:
        assert select.select([read], [], [], PATIENCE)[0], f"{len(numbers)} came, {told} were told"
        got += os.read(read, 65536).decode()
        lines = got.split("\n")[:-1]
        numbers = [int(line) for line in lines if not line.endswith(" lost")]
        told = sum(int(line.split()[0]) for line in lines if line.endswith(" lost"))
    assert numbers == sorted(numbers)
    assert told == writer.lost
    writer.write("after")
    writer.flush(PATIENCE)
    assert os.read(read, 65536).endswith(b"after\n")


# --- limits --------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def passed(limit: Callable[..., Any], number: int, **event: Any) -> list[dict[str, Any]]:
    shown = []
    for _ in range(number):
        try:
            shown.append(dict(limit(None, "error", {"component": "a", "event": "cannot accept", **event})))
        except structlog.DropEvent:
            continue
    return shown


def test_lines_of_one_kind_are_limited_and_the_next_one_says_how_many_were_left_out() -> None:
    clock = Clock()
    limit = RateLimit(at_once=10, a_second=2.0, clock=clock)
    assert len(passed(limit, 1000)) == 10
    assert len(passed(limit, 5, event="something else")) == 5
    clock.now = 1.0
    again = passed(limit, 1000)
    assert [line.get("left_out") for line in again] == [990, None]
    assert limit.left_out == 990 + 998


def test_kinds_are_bounded() -> None:
    limit = RateLimit(clock=Clock())
    for number in range(10_000):
        passed(limit, 1, event=f"event {number}")
    assert len(limit._kinds) == 1000


def test_a_line_is_bounded() -> None:
    short = shorten(None, "info", {"reason": "x" * 24_000_000, "found": list(range(100_000)), "n": 1})
    assert len(short["reason"]) < 5000
    assert "24000000 characters" in short["reason"]
    assert len(short["found"]) == 51
    assert short["found"][-1] == "… (100000 in all)"
    assert short["n"] == 1


def test_libraries_lines_go_the_same_way() -> None:
    program = """
import asyncio, logging, os
from felix_py import log
log.configure(log.LogLevel.INFO, log.LogFormat.JSON, node="n1")
for number in range(1000):
    logging.getLogger("asyncio").error("socket.accept() out of system resource")
logging.getLogger("x").info("chatter")
log.flush()
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert 100 <= len(lines) < 200
    assert {(line["component"], line["level"], line["node"]) for line in lines} == {("asyncio", "error", "n1")}


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError"])
def test_what_was_logged_last_is_written_at_the_end(end: str) -> None:
    program = f"""
from felix_py import log
log.configure(log.LogLevel.INFO, log.LogFormat.TEXT)
log.get("x").info("the last words")
{end}
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
    )
    assert "the last words" in done.stderr
    assert time.monotonic() - started < PATIENCE


def test_a_new_level_counts_for_loggers_that_exist(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure(LogLevel.INFO, LogFormat.JSON)
    logger = log.get("part")
    bound = logger.bind(pod="a")
    try:
        for level, expected in ((LogLevel.DEBUG, 6), (LogLevel.ERROR, 0), (LogLevel.WARNING, 2)):
            log.set_level(level)
            for one in (logger, bound):
                one.debug("debug")
                one.info("info")
                one.warning("warning")
            log.flush()
            assert len(capfd.readouterr().err.splitlines()) == expected, level
    finally:
        log.set_level(LogLevel.INFO)


def test_an_agent_starts_without_what_only_terminals_need() -> None:
    """structlog alone would load rich, pygments and attrs, the official client its models: half of a start."""
    program = "import felix_py.cli.main, felix_py.agent.main, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    loaded = set(done.stdout.split())
    assert {"structlog", "felix_py.reconcile"} <= loaded
    assert not {"rich", "pygments", "attr", "kubernetes.client.models", "aiohttp", "pyroute2"} & loaded
