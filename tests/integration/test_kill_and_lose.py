"""The agent is killed at any moment of CNI calls, and finds its address store missing, damaged or old: no address
is ever given twice, no pod that runs loses its own, and what is deleted is gone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from felix_py.ipam.beside import read_leases
from felix_py.layout import interface_name
from tests.support.agent_process import AgentProcess
from tests.support.cni import addresses, host_interfaces
from tests.support.fakeapi import FakeApi
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(1800)]
MakeNetns = Callable[[str], NetworkNamespace]

PODS = 6


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


class Runtime:
    """What a kubelet does: an ADD that fails is followed by DEL until that succeeds; then the next ADD."""

    def __init__(self, agent: AgentProcess, places: list[NetworkNamespace], dice: random.Random) -> None:
        self._agent = agent
        self._places = places
        self._dice = dice
        self.running: dict[int, list[str]] = {}
        self._unclear: set[int] = set()

    def some_calls(self) -> dict[int, Future[tuple[int, dict[str, Any]]]]:
        """Begin a call for some pods at once; :meth:`take` their outcome."""
        with ThreadPoolExecutor(PODS) as pool:
            chosen = self._dice.sample(range(PODS), self._dice.randint(2, PODS))
            calls = {number: pool.submit(self._next, number) for number in chosen}
            time.sleep(self._dice.uniform(0.0, 0.25))
            os.kill(self._agent.pid, signal.SIGKILL)
        self._agent.wait()
        return calls

    def _next(self, number: int) -> tuple[int, dict[str, Any]]:
        command = "DEL" if number in self.running or number in self._unclear else "ADD"
        return self._agent.call(command, f"pod-{number}", self._places[number].path)

    def take(self, calls: dict[int, Future[tuple[int, dict[str, Any]]]]) -> None:
        """What the runtime knows now of those pods."""
        for number, call in calls.items():
            code, answer = call.result()
            before = self.running.pop(number, None)
            if before is None and number not in self._unclear and code == 0:
                self.running[number] = addresses(answer)
            elif code:
                self._unclear.add(number)  # a sandbox half made, or half taken away
            else:
                self._unclear.discard(number)

    def clear_up(self) -> None:
        """Once the agent has made up for the DELs that came while it was away."""
        self._agent.wait_ready()
        spool = self._agent.run_dir / "spool"
        self._agent.until(lambda: not list(spool.glob("[!.]*")), "spooled calls")
        for number in sorted(self._unclear):
            assert self._agent.call("DEL", f"pod-{number}", self._places[number].path) == (0, {})
        self._unclear.clear()

    def end(self) -> None:
        for number in list(self.running):
            assert self._agent.call("DEL", f"pod-{number}", "") == (0, {})
            del self.running[number]


def lose(state: Path, old: Path, how: str) -> None:
    """What happens to the store while no agent runs."""
    if how == "missing":
        shutil.rmtree(state, ignore_errors=True)
    elif how == "damaged" and (state / "leases.db").exists():
        content = bytearray((state / "leases.db").read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        (state / "leases.db").write_bytes(content)
    elif how == "old" and old.exists():
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(old, state)
    elif how == "kept" and state.exists():
        shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(state, old)


def check(runtime: Runtime) -> None:
    """Each pod that runs has its interface, and alone its address and the route to it."""
    held = [address for addresses in runtime.running.values() for address in addresses]
    assert len(held) == len(set(held))
    routes = run("ip", "route", "show", "proto", "88").splitlines()
    for number, own in runtime.running.items():
        host = interface_name(f"c-pod-{number}", "eth0")
        assert [line.split()[2] for line in routes if line.split()[0] in own] == [host]


def rounds(folder: Path, api: FakeApi, make_netns: MakeNetns, count: int) -> None:
    dice = random.Random(time.time_ns())
    places = [make_netns(f"p{number}") for number in range(PODS)]
    with AgentProcess(folder, api, ["--backend=nft"]) as agent:
        for number in range(PODS):
            agent.add_pod(f"pod-{number}")
        runtime = Runtime(agent, places, dice)
        agent.start()
        for _ in range(count):
            runtime.clear_up()
            check(runtime)
            runtime.take(runtime.some_calls())
            lose(folder / "lib", folder / "old", dice.choice(["kept", "kept", "missing", "damaged", "old"]))
            agent.start()
        runtime.clear_up()
        check(runtime)
        runtime.end()
        assert not host_interfaces()
        assert "10.65.0." not in run("ip", "route", "show", "proto", "88", "type", "unicast")
        # Of an old copy leases may be left whose interfaces were gone before: they wait for the look.
        assert all(lease.interface not in host_interfaces() for lease in read_leases(folder / "lib/leases.db"))
        agent.stop()


def test_kill_at_any_moment_and_lose_the_store(tmp_path: Path, api: FakeApi, make_netns: MakeNetns) -> None:
    rounds(tmp_path, api, make_netns, 12)


@pytest.mark.heavy
def test_kill_two_hundred_times(tmp_path: Path, api: FakeApi, make_netns: MakeNetns) -> None:
    rounds(tmp_path, api, make_netns, 200)
