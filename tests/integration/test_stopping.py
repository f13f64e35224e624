"""The agent ends when it is asked to: at any moment, whatever is under way, whatever hangs; enforcement stays."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from felix_py.agent.stopping import HUNG
from tests.support.agent_process import AgentProcess
from tests.support.fakeapi import POLICIES, FakeApi
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

MOST_SECONDS = 11.0
"""Ten, and one for the machine to tell us."""

ROUNDS = int(os.environ.get("FELIX_PY_TEST_SIGTERMS", "12"))
WORKERS = 4

MakeNetns = Callable[[str], NetworkNamespace]
CHANCE = random.Random()

DENY = {
    "metadata": {"name": "deny", "namespace": "default"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}


@pytest.fixture
def api(netns: None) -> Iterator[FakeApi]:
    with FakeApi() as server:
        server.put(POLICIES, DENY)
        yield server


class Load:
    """CNI ADD and DEL of a few pods without end, as several runtimes' threads would."""

    def __init__(self, agent: AgentProcess, places: list[NetworkNamespace]) -> None:
        self._agent = agent
        self._over = threading.Event()
        self.strange: list[object] = []
        self.done = 0
        self._threads = [
            threading.Thread(target=self._run, args=(f"pod-{number}", place.path))
            for number, place in enumerate(places)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, netns: str) -> None:
        command = "ADD"
        while not self._over.is_set():
            code, answer = self._agent.call(command, name, netns)
            if code == 0:
                command = "DEL" if command == "ADD" else "ADD"
                self.done += 1
            elif answer.get("code") == 11:
                time.sleep(0.01)
                # As the kubelet: a sandbox that failed is torn down before the next try.
                command = "DEL"
            else:
                self.strange.append((command, code, answer))
                command = "DEL"


def hooks(backend: str = "nft") -> list[str]:
    """Our rules in the built-in chains."""
    saved = run(f"iptables-{backend}-save", "-t", "filter").splitlines()
    return [line for line in saved if "felix:" in line and not line.startswith("-A FELIX-")]


def sleeping(program: Path) -> list[int]:
    """Processes that run a script."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(program) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def sigterms(folder: Path, api: FakeApi, make_netns: MakeNetns, rounds: int) -> None:
    places = [make_netns(f"pod{number}") for number in range(WORKERS)]
    with AgentProcess(folder, api, ["--backend=nft"]) as agent:
        for number in range(WORKERS):
            agent.add_pod(f"pod-{number}", app="web")
        codes: dict[int, int] = {}
        slowest = 0.0
        agent.start()
        agent.wait_ready()
        enforced = hooks()
        assert enforced
        with Load(agent, places) as load:
            for number in range(rounds):
                at_some_moment(agent, load, on_the_way_up=number % 4 == 3)
                code, seconds = agent.stop()
                codes[code] = codes.get(code, 0) + 1
                slowest = max(slowest, seconds)
                assert seconds < MOST_SECONDS, f"stop {number}\n{agent.log.read_text()[-4000:]}"
                assert set(enforced) <= set(hooks()), f"stop {number}"
                agent.start()
        assert load.strange == []
        # A signal before the agent has come to listen for it kills it.
        assert codes.keys() <= {0, -signal.SIGTERM}, codes
        assert codes[0] > rounds / 2
        agent.wait_ready()
        for number, place in enumerate(places):
            agent.until(lambda n=number, p=place: agent.call("DEL", f"pod-{n}", p.path)[0] == 0)  # type: ignore[misc]
        assert run("ip", "-o", "link", "show", "type", "veth") == ""
        assert "Traceback" not in agent.log.read_text()
        assert agent.stop()[0] == 0
    print(f"\n{rounds} stops: exit codes {codes}, slowest {slowest:.2f} s, {load.done} CNI calls")


def at_some_moment(agent: AgentProcess, load: Load, *, on_the_way_up: bool) -> None:
    if on_the_way_up:
        time.sleep(CHANCE.uniform(0.0, 1.0))
        return
    agent.wait_ready()
    before = load.done
    agent.until(lambda: load.done > before, "a CNI call")
    time.sleep(CHANCE.uniform(0.0, 0.2))


def test_random_sigterms_under_cni_load(tmp_path: Path, api: FakeApi, make_netns: MakeNetns) -> None:
    sigterms(tmp_path, api, make_netns, ROUNDS)


@pytest.mark.heavy
def test_two_hundred_random_sigterms_under_cni_load(tmp_path: Path, api: FakeApi, make_netns: MakeNetns) -> None:
    sigterms(tmp_path, api, make_netns, 200)


# --- what hangs --------------------------------------------------------------------------------------


@contextmanager
def running(agent: AgentProcess) -> Iterator[AgentProcess]:
    agent.start()
    try:
        yield agent
    finally:
        agent.close()


class Tool:
    """One of the iptables tools, which hangs once it is told to, with a child that holds its output."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / "tools" / name
        self._flag = folder / f"{name}-hangs"
        self.path.parent.mkdir(exist_ok=True)
        hang = f"if [ -e {self._flag} ]; then sleep 1000 & sleep 1000; fi"
        self.path.write_text(f'#!/bin/sh\n{hang}\nexec {shutil.which(name)} "$@"\n')
        self.path.chmod(0o755)

    def hang(self) -> None:
        self._flag.touch()

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.path.parent}:{os.environ['PATH']}"}

    def hanging(self) -> list[int]:
        """Its processes."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and str(self.path) in (entry / "cmdline").read_text():
                    found.append(int(entry.name))
        return found


BACKENDS = pytest.mark.parametrize("backend", ["nft", "legacy"])


@BACKENDS
def test_an_iptables_restore_that_hangs_keeps_neither_the_agent_nor_those_who_wait(
    tmp_path: Path, api: FakeApi, make_netns: MakeNetns, backend: str
) -> None:
    place = make_netns("pod")
    tool = Tool(tmp_path, f"iptables-{backend}-restore")
    agent = AgentProcess(tmp_path, api, options=[f"--backend={backend}"], environment=tool.environment)
    agent.add_pod("pod-0")
    answers: list[tuple[int, dict[str, Any]]] = []
    with running(agent):
        agent.wait_ready()
        enforced = hooks(backend)
        assert agent.call("ADD", "pod-0", place.path)[0] == 0
        tool.hang()
        api.put(POLICIES, {**DENY, "metadata": {"name": "more", "namespace": "default"}})
        agent.until(tool.hanging, "a tool that hangs")
        waiting = threading.Thread(target=lambda: answers.append(agent.call("DEL", "pod-0", place.path)))
        waiting.start()
        agent.until(lambda: "felix" not in run("ip", "-o", "link"), "the interface gone")
        code, seconds = agent.stop()
        waiting.join()
        assert (code, tool.hanging()) == (0, [])
        assert seconds < MOST_SECONDS
        assert hooks(backend) == enforced
    assert answers[0][1]["code"] == 11
    assert "stopping" in answers[0][1]["msg"]
    assert any("killed" in line["event"] for line in agent.logged())


@BACKENDS
def test_an_iptables_save_that_hangs_at_the_start_keeps_no_agent(
    tmp_path: Path, api: FakeApi, backend: str
) -> None:
    tool = Tool(tmp_path, f"iptables-{backend}-save")
    tool.hang()
    agent = AgentProcess(tmp_path, api, options=[f"--backend={backend}"], environment=tool.environment)
    with running(agent):
        agent.until(tool.hanging, "a tool that hangs")
        code, seconds = agent.stop()
        assert (code, tool.hanging()) == (0, [])
        assert seconds < MOST_SECONDS


def test_an_api_server_that_never_answers_keeps_no_agent(tmp_path: Path, api: FakeApi) -> None:
    api.fault("*", lambda exchange: exchange.hang() or True, times=1000)
    agent = AgentProcess(tmp_path, api, options=["--backend=nft"])
    with running(agent):
        api.wait_for(lambda: bool(api.requests))
        code, seconds = agent.stop()
        assert code == 0
        assert seconds < MOST_SECONDS


def test_an_event_loop_that_is_stuck_is_left_and_the_exit_code_says_so(tmp_path: Path) -> None:
    """A defect, or a kernel that does not answer the main thread: the last resort."""
    program = """
import asyncio, sys, time
from felix_py.agent.stopping import Stopping

async def main():
    Stopping(lambda: [], lambda text: print(text, file=sys.stderr))
    print("stuck", flush=True)
    while True:
        time.sleep(1000)

asyncio.run(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "stuck\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == HUNG
    assert "orderly" in said
    assert time.monotonic() - started < MOST_SECONDS


def test_what_keeps_it_from_starting_is_said_also_while_it_stops_what_it_had_begun(
    tmp_path: Path, api: FakeApi
) -> None:
    agent = AgentProcess(tmp_path, api, options=["--backend=nft", f"--bgp-config={tmp_path}/missing.yaml"])
    with running(agent):
        assert agent.wait() == 1
    assert any(line["event"] == "cannot start" and "bgp-config" in line["reason"] for line in agent.logged())


# --- the log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", ["stopped", "gone", "full"])
def test_an_agent_goes_on_whatever_becomes_of_its_logs_reader(
    tmp_path: Path, api: FakeApi, make_netns: MakeNetns, reader: str
) -> None:
    """Before, the event loop stood still in a write to stderr, or an exception from there ended what was done."""
    place = make_netns("pod")
    agent = AgentProcess(tmp_path, api, options=["--backend=nft", "--log-level=debug"])
    agent.add_pod("pod-0")
    read, write = os.pipe()
    if reader == "full":
        os.close(write)
        write = os.open("/dev/full", os.O_WRONLY)
    if reader == "gone":
        os.close(read)
    agent.start(stderr=write)
    os.close(write)
    try:
        agent.wait_ready()
        assert agent.call("ADD", "pod-0", place.path)[0] == 0
        for _ in range(150):  # their lines are far more than a pipe holds
            code, answer = agent.call("CHECK", "pod-0", place.path, cniVersion="9" * 4000)
            assert (code, answer["code"]) == (1, 1)
        assert agent.get("/healthz")[0] == 200
        assert agent.call("DEL", "pod-0", place.path)[0] == 0
        if reader != "stopped":
            assert 'felix_py_log_lines_lost_total{reason="reader"} 0.0' not in agent.get("/metrics")[1]
        code, seconds = agent.stop()
        assert code == 0
        assert seconds < MOST_SECONDS
    finally:
        agent.close()
        if reader != "gone":
            os.close(read)
