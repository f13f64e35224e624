"""``/denies`` and ``felix-py denies``: what people and scripts see, also of an agent that comes and goes."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from felix_py.cli.denied import wide
from felix_py.desired.deny_log import HOST_DROP, SOURCE_DROP, Drop
from felix_py.metrics import Metrics
from felix_py.observe.chain_names import ChainNames
from felix_py.observe.denies import Denies
from felix_py.observe.deny_events import DenyEvent, Describer
from felix_py.observe.deny_http import DenyRoutes
from felix_py.observe.health import HealthServer
from felix_py.observe.listener import listen
from policy.model import Node, Pod
from policy.oracle.evaluate import Snapshot
from tests.support.asking import free_port
from tests.support.logged import dropped

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
PATIENCE = 20.0


class Agent:
    """A health server with a deny log, on an event loop in a thread: who asks it waits for the answer."""

    def __init__(self, port: int, *, first_id: int = 1, on: bool = True) -> None:
        self.port = port
        self.unavailable: str | None = None if on else "the deny log is switched off on this node (--no-deny-log)"
        view = Snapshot(
            [],
            [Pod("shop", "web", addresses=("10.1.0.2",)), Pod("dev", "tool", addresses=("fd00::2",))],
            [],
            [Node("n2", (), ("192.0.2.2",))],
        )
        describer = Describer("n1", view, ChainNames(lambda _name: ()), lambda _name: None)
        self.ahead = 0.0
        """Seconds that have passed besides the real ones."""
        now = lambda: time.monotonic() + self.ahead  # noqa: E731
        self.denies = Denies(describer, Metrics(), lines=False, first_id=first_id, clock=now)
        routes = DenyRoutes("n1", self.denies if on else None, lambda: self.unavailable)

        async def refresh() -> None:
            pass

        self._server = HealthServer(CollectorRegistry(), dict, dict, refresh, routes.routes())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._stop = asyncio.Event()
        started = threading.Event()
        self._loop.call_soon(started.set)
        self._thread.start()
        started.wait(PATIENCE)
        self.call(self._server.start(private=listen(f"127.0.0.1:{port}")))

    def _run(self) -> None:
        self._loop.run_until_complete(self._stop.wait())
        self._loop.close()

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    def deny(self, drop: Drop, source: str = "10.1.0.2", destination: str = "192.0.2.2", **more: Any) -> None:
        """One event, complete at once."""

        async def note() -> None:
            self.denies.note([dropped(drop, source, destination, **more)])
            self.denies.close_all()

        self.call(note())

    def stop(self) -> None:
        if not self._loop.is_closed():
            self.call(self._server.stop())
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)


@pytest.fixture
def start() -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def make(port: int | None = None, **options: Any) -> Agent:
        agents.append(Agent(port or free_port(), **options))
        return agents[-1]

    yield make
    for agent in agents:
        agent.stop()


def command(port: int, *words: str) -> list[str]:
    return [FELIX_PY, "denies", "--agent", f"http://127.0.0.1:{port}", *words]


def denies(port: int, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(port, *words), capture_output=True, text=True, check=False, timeout=PATIENCE)


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


# --- once --------------------------------------------------------------------------------------------


def test_lines_for_people(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.deny(HOST_DROP, port=53, protocol=17)
    agent.deny(SOURCE_DROP, "fd00::2", "2001:db8::1", port=None, protocol=132)
    done = denies(agent.port, "-o", "wide")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    ends = "shop/web 10.1.0.2 -> node/n2 192.0.2.2 53/UDP"
    assert first.endswith(
        f" DENIED egress {ends}: the node takes nothing from its pods (--endpoint-to-host drop)"
    )
    assert re.match(r"(1970-01-01 |1969-12-31 )\d\d:\d\d:\d\d ", first)
    assert " world fd00::2 -> world 2001:db8::1 SCTP: the pod sent from fd00::2, which is not its" in second


def test_by_pair_is_what_one_sees_first(start: Callable[..., Agent]) -> None:
    agent = start()
    for _ in range(3):
        agent.deny(HOST_DROP, port=53, protocol=17)
    done = denies(agent.port)
    assert (done.returncode, done.stderr) == (0, "")
    header, row = done.stdout.splitlines()
    assert header.split() == ["LAST", "PACKETS", "FROM", "TO", "PORT", "WHY"]
    assert row.endswith("  3        shop/web  node/n2  53/UDP  --endpoint-to-host drop")


def test_json_is_an_object_a_line(start: Callable[..., Agent]) -> None:
    agent = start()
    agent.deny(HOST_DROP)
    agent.deny(SOURCE_DROP)
    done = denies(agent.port, "-o", "json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["reason"], second["reason"], first["count"]) == ("host", "source", 1)
    assert first["source"] == {"address": "10.1.0.2", "pod": "shop/web", "port": 40000}
    assert first["destination"] == {"address": "192.0.2.2", "node": "n2", "port": 80}


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ([], [1, 2, 3]),
        (["--limit", "2"], [2, 3]),
        (["--limit", "0"], []),
        (["--namespace", "shop"], [1, 3]),
        (["--namespace", "sho"], []),
        (["--namespace", "shop", "--limit", "1"], [3]),
        (["--pod", "dev/tool"], [2]),
        (["--pod", "dev/web"], []),
    ],
    ids=str,
)
def test_a_choice_of_events(start: Callable[..., Agent], words: list[str], ids: list[int]) -> None:
    agent = start()
    agent.deny(HOST_DROP)
    agent.deny(HOST_DROP, "fd00::2", "2001:db8::1")
    agent.deny(HOST_DROP, "192.0.2.2", "10.1.0.2")
    done = denies(agent.port, "-o", "json", *words)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ids


def test_a_log_that_is_off_and_one_that_is_not_read(start: Callable[..., Agent]) -> None:
    off = start(on=False)
    for words in ([], ["--follow"]):
        done = denies(off.port, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert "felix-py denies: the deny log is switched off on this node (--no-deny-log)" in done.stderr
    agent = start()
    agent.deny(HOST_DROP)
    agent.unavailable = "NFLOG group 88 is read by another process"
    done = denies(agent.port)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 2)
    assert "not read at present: NFLOG group 88 is read by another process" in done.stderr


def test_nobody_answers() -> None:
    port = free_port()
    for words in ([], ["--follow"]):
        done = denies(port, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"felix-py denies: no agent answers at http://127.0.0.1:{port} (Connection refused)" in done.stderr
        assert "run it as root on a node with an agent" in done.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n", "no (HTTP 404)"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[]\n", "something else"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "something else"),
        (b"SSH-2.0-OpenSSH_9\r\n", "no agent answers"),
        (b"", "no agent answers"),
    ],
    ids=["404", "list", "text", "ssh", "nothing"],
)
def test_something_else_answers(answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = denies(server.getsockname()[1])
        thread.join(PATIENCE)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--agent", "https://127.0.0.1:9099"], "must be the path of an agent's socket, or http://ADDRESS:PORT"),
        (["--agent", "127.0.0.1:9099"], "must be the path of an agent's socket, or http://ADDRESS:PORT"),
        (["--agent", "http://127.0.0.1:port"], "must be the path of an agent's socket, or http://ADDRESS:PORT"),
        (["--agent", "http://[::1"], "must be the path of an agent's socket, or http://ADDRESS:PORT"),
        (["--pod", "web"], "must be NAMESPACE/NAME"),
        (["--pod", "/web"], "must be NAMESPACE/NAME"),
        (["--limit", "-1"], "0"),
        (["--since", "yesterday"], "must be a duration such as 30s"),
        (["--since", "5"], "must be a duration such as 30s"),
        (["-o", "yaml"], "text"),
    ],
    ids=str,
)
def test_wrong_calls(words: list[str], message: str) -> None:
    done = subprocess.run([FELIX_PY, "denies", *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_wrong_requests_are_told_what_is_wrong(start: Callable[..., Agent]) -> None:
    agent = start()
    assert get(agent.port, "/denies?since=yesterday") == (400, "since='yesterday': must be a number\n")
    assert get(agent.port, "/denies?limit=-1")[0] == 400
    assert get(agent.port, "/denies?limit=%D9%A1")[0] == 400
    assert get(agent.port, "/denies?sinec=1") == (
        400,
        "'sinec': there is since, within, limit, namespace, pod and follow\n",
    )


def test_since(start: Callable[..., Agent]) -> None:
    agent = start()
    for _ in range(3):
        agent.deny(HOST_DROP)
    status, body = get(agent.port, "/denies?since=2")
    answer = json.loads(body)
    assert (status, answer["node"], answer["state"]) == (200, "n1", "on")
    assert [event["id"] for event in answer["events"]] == [3]


def test_an_id_of_an_earlier_life_with_a_clock_that_was_ahead(start: Callable[..., Agent]) -> None:
    agent = start()
    for _ in range(3):
        agent.deny(HOST_DROP)
    for since, found in ((3, []), (4, [1, 2, 3]), (10**17, [1, 2, 3])):
        answer = json.loads(get(agent.port, f"/denies?since={since}")[1])
        assert [event["id"] for event in answer["events"]] == found


def test_events_that_are_still_open_are_in_the_list(start: Callable[..., Agent]) -> None:
    agent = start()

    async def note() -> None:
        agent.denies.note([dropped(HOST_DROP), dropped(HOST_DROP)])

    agent.call(note())
    (event,) = json.loads(get(agent.port, "/denies")[1])["events"]
    assert event["count"] == 2


def test_no_character_of_an_event_reaches_the_terminal_as_a_command() -> None:
    event = {"message": "rule \x1b[2J\u202e\r\n", "source": {"pod": "a\x07"}, "count": 2, "time": "soon"}
    line = wide(event)
    assert line.isprintable()
    assert line.startswith("soon DENIED a? ? -> ? ? x2: rule ?[2J")
    json_event: dict[str, Any] = {"protocol": "ICMP", "icmpType": 8, "icmpCode": 0}
    assert " ICMP type 8: " in wide(json_event)


# --- follow ------------------------------------------------------------------------------------------


class Follower:
    """``felix-py denies --follow`` as a process."""

    def __init__(self, port: int, *words: str) -> None:
        self._process = subprocess.Popen(
            command(port, "--follow", "-o", "json", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        assert self._process.stderr
        self._out, self._err = self._process.stdout, self._process.stderr

    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._out.readline())
        return found

    def says(self) -> str:
        return self._err.readline()

    def interrupt(self) -> tuple[int, str, str]:
        self._process.send_signal(signal.SIGINT)
        out, err = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, out, err

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def follow() -> Iterator[Callable[..., Follower]]:
    followers: list[Follower] = []

    def make(port: int, *words: str) -> Follower:
        followers.append(Follower(port, *words))
        return followers[-1]

    yield make
    for follower in followers:
        follower.close()


def test_follow_shows_what_is_there_and_what_comes(
    start: Callable[..., Agent], follow: Callable[..., Follower]
) -> None:
    agent = start()
    for _ in range(3):
        agent.deny(HOST_DROP)
    follower = follow(agent.port, "--limit", "2")
    assert [follower.event()["id"] for _ in range(2)] == [2, 3]
    agent.deny(SOURCE_DROP)
    assert follower.event()["reason"] == "source"
    assert follower.interrupt() == (0, "", "")


def test_follow_says_what_it_does_not_show(start: Callable[..., Agent], follow: Callable[..., Follower]) -> None:
    agent = start()
    agent.deny(HOST_DROP)
    follower = follow(agent.port)
    assert follower.event()["id"] == 1

    async def flood() -> None:
        agent.denies.note([dropped(HOST_DROP, port=number) for number in range(1, 301)])
        agent.denies.close_all()

    agent.call(flood())
    missed = agent.denies.suppressed
    assert missed > 50
    assert follower.says() == f"felix-py denies: {missed} more have no line: too many came at once\n"


def test_follow_of_one_pod(start: Callable[..., Agent], follow: Callable[..., Follower]) -> None:
    agent = start()
    agent.deny(HOST_DROP)
    follower = follow(agent.port, "--pod", "shop/web")
    assert follower.event()["id"] == 1
    agent.deny(HOST_DROP, "fd00::2", "2001:db8::1")
    agent.deny(HOST_DROP)
    assert follower.event()["id"] == 3


def test_follow_waits_for_an_agent_that_restarts_and_repeats_nothing(
    start: Callable[..., Agent], follow: Callable[..., Follower]
) -> None:
    port = free_port()
    agent = start(port)
    agent.deny(HOST_DROP)
    follower = follow(port)
    assert follower.event()["id"] == 1
    agent.stop()
    assert follower.says() == "felix-py denies: the agent is gone; waiting for it\n"
    again = start(port, first_id=100)
    again.deny(SOURCE_DROP)
    assert follower.event()["id"] == 100
    assert follower.says() == "felix-py denies: the agent is back\n"
    assert follower.interrupt() == (0, "", "")


def test_a_reader_that_has_enough_ends_it_quietly(start: Callable[..., Agent]) -> None:
    agent = start()
    for _ in range(3):
        agent.deny(HOST_DROP)
    shell = f"{' '.join(command(agent.port, '--follow'))} | head -n1; echo ${{PIPESTATUS[0]}}"
    process = subprocess.Popen(["bash", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert "DENIED" in process.stdout.readline()
    # The pipe breaks when there is something to write; it may take a second event until it is closed.
    while process.poll() is None:
        agent.deny(HOST_DROP)
    out, err = process.communicate(timeout=PATIENCE)
    assert (out, err) == ("0\n", "")


def test_an_agent_stops_although_somebody_follows(
    start: Callable[..., Agent], follow: Callable[..., Follower]
) -> None:
    agent = start()
    agent.deny(HOST_DROP)
    follower = follow(agent.port)
    follower.event()
    agent.stop()
    assert agent.denies.events()[0].id == 1
    with agent.denies.follow():  # the follower's place is free again
        pass


def test_followers_beyond_the_bound_are_refused(start: Callable[..., Agent]) -> None:
    agent = start()
    sockets = []
    for _ in range(16):
        sockets.append(socket.create_connection(("127.0.0.1", agent.port)))
        sockets[-1].sendall(b"GET /denies?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in sockets[-1].recv(200)
    assert get(agent.port, "/denies?follow=1")[0] == 503
    for one in sockets:
        one.close()
    # One that goes away gives its place back at once, not with the next event.
    while get_status(agent.port) == 503:
        pass


def get_status(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"GET /denies?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        return int(one.recv(200).split()[1])


def test_an_event_survives_its_way_as_json() -> None:
    import msgspec

    packet = dropped(SOURCE_DROP)
    assert packet.header is not None
    agent_event = Describer("n1", Snapshot([], [], []), ChainNames(lambda _name: ()), lambda _name: None).event(
        7, packet, SOURCE_DROP, packet.header
    )
    assert msgspec.json.decode(msgspec.json.encode(agent_event), type=DenyEvent) == agent_event
