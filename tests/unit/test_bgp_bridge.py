"""The bridge as the process ExaBGP runs: this test is ExaBGP on one side and the agent on the other."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgp import bridge

EVENT = b'{ "exabgp": "5.0.0", "counter": %d, "type": "state" }\n'
OPEN = (
    b'{ "exabgp": "5.0.0", "counter": 1, "type": "open", "neighbor": { "address": { "local": "10.9.0.1", '
    b'"peer": "%s" }, "open": %d } }\n'
)


class Running:
    def __init__(self, path: Path) -> None:
        self.path = path
        argv = [sys.executable, "-I", "-S", bridge.__file__, str(path)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert isinstance(self.process.stdout, io.BufferedReader)
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def write(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    @contextlib.contextmanager
    def agent(self) -> Iterator[socket.socket]:
        deadline = time.monotonic() + 5
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(5)
            while agent.connect_ex(str(self.path)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield agent

    def command(self, agent: socket.socket, line: bytes) -> None:
        """Send a command and see ExaBGP get it: from then on the bridge knows this agent."""
        agent.sendall(line)
        assert self.line() == line

    def line(self) -> bytes:
        """The next command, as ExaBGP takes it: blanks in front only wake it."""
        return bytes(self.stdout.readline()).lstrip(b" ")


def read(agent: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = agent.recv(size - len(data))
        assert chunk, f"closed after {data!r}"
        data += chunk
    return data


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "bridge.sock")
    yield running
    with contextlib.suppress(BrokenPipeError):
        running.stdin.close()
    assert running.process.wait(5) == 0
    running.stdout.close()


def test_lines_go_both_ways_and_the_socket_is_private(running: Running) -> None:
    with running.agent() as agent:
        running.command(agent, b"show neighbor json\n")
        answer = b'[{"state": "up"}]\n' + EVENT % 1 + b"done\n"
        running.write(answer)
        assert read(agent, len(answer)) == answer
    assert running.path.stat().st_mode & 0o077 == 0


def test_events_wait_for_the_first_agent(running: Running) -> None:
    running.write(EVENT % 1 + EVENT % 2)
    with running.agent() as agent:
        assert read(agent, len(EVENT % 1) * 2) == EVENT % 1 + EVENT % 2


def test_answers_for_an_agent_that_is_gone_are_not_for_the_next(running: Running) -> None:
    with running.agent() as first:
        running.command(first, b"show adj-rib in json\n")
        running.command(first, b"# two\n")
        first.sendall(b"# half a comm")
    with running.agent() as second:
        running.command(second, b"# three\n")
        running.write(b'{"peer": {}, "route": 2}\ndone\n' + EVENT % 2 + b"error\ndone\n")
        assert read(second, len(EVENT % 2) + 5) == EVENT % 2 + b"done\n"


def test_newest_agent_wins(running: Running) -> None:
    with running.agent() as first:
        running.command(first, b"# one\n")
        with running.agent() as second:
            assert first.recv(1) == b""
            running.command(second, b"# two\n")
            running.write(b"done\ndone\n" + EVENT % 1)
            assert read(second, 5 + len(EVENT % 1)) == b"done\n" + EVENT % 1


def test_every_agent_hears_the_last_open_of_each_peer(running: Running) -> None:
    running.write(OPEN % (b"10.9.0.2", 1) + OPEN % (b"fd09::2", 2) + OPEN % (b"10.9.0.2", 3))
    with running.agent() as first:
        running.command(first, b"# one\n")
    with running.agent() as second:
        expected = OPEN % (b"10.9.0.2", 3) + OPEN % (b"fd09::2", 2)
        assert read(second, len(expected)) == expected


def test_exabgp_never_blocks(running: Running) -> None:
    """Far more than pipes and sockets hold: with no agent, and with one that does not read."""
    burst = (EVENT % 7) * 200_000
    running.write(burst)
    with running.agent() as lazy:
        running.command(lazy, b"# here\n")
        for _ in range(8):
            running.write(burst)
        with running.agent() as prompt:
            running.command(prompt, b"# there\n")
            running.write(b"done\ndone\n")
            while b"done\n" not in prompt.recv(1 << 20):
                pass


def test_what_exabgp_cannot_read_is_kept_from_it(running: Running) -> None:
    with running.agent() as agent:
        agent.sendall("neighbor 10.9.0.2 announce é\n\n  \n# next\n".encode())
        assert running.line() == b"# next\n"


def test_socket_that_cannot_be_made_yet(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    running = Running(folder / "bridge.sock")
    running.write((EVENT % 1) * 10_000)
    assert running.process.poll() is None
    folder.mkdir()
    with running.agent() as agent:
        running.command(agent, b"# hello\n")
    running.stdin.close()
    assert running.process.wait(5) == 0
    running.stdout.close()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bridge.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    running = Running(path)
    with running.agent() as agent:
        running.command(agent, b"# hello\n")
    running.stdin.close()
    assert running.process.wait(5) == 0
    running.stdout.close()


def test_a_socket_that_somebody_has_removed(running: Running) -> None:
    with running.agent() as agent:
        running.command(agent, b"# hello\n")
        running.path.unlink()
        until = time.monotonic() + 60
        while not running.path.exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        running.command(agent, b"# still here\n")
    with running.agent() as agent:
        running.command(agent, b"# hello\n")


def test_exabgp_is_woken_a_few_times_after_each_sign_of_life(running: Running) -> None:
    """Its loop sleeps long; what is written when nothing happens must come to an end, or it would never idle."""
    with running.agent() as agent:
        deadline = time.monotonic() + 60
        while select.select([running.stdout], [], [], 0.5)[0]:  # quick from the start on, for some seconds
            running.stdout.read1(65536)
            assert time.monotonic() < deadline
        for number in range(1, 4):
            update = (EVENT % number).replace(b"state", b"update")
            running.write(update)
            assert read(agent, len(update)) == update
            assert [running.stdout.read(1) for _ in range(7)] == [b" "] * 7
            ready, _, _ = select.select([running.stdout], [], [], 0.5)
            assert not ready
        running.command(agent, b"show neighbor json\n")
