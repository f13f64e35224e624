"""The agent is killed before each system call that it makes in an ADD and in a DEL: no address is given twice, no
pod that runs loses its own, what is deleted is gone, and the container id can be used again at once."""

from __future__ import annotations

import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from felix_py.ipam.beside import read_leases
from felix_py.layout import interface_name
from tests.support.agent_process import AgentProcess
from tests.support.cni import addresses, host_interfaces
from tests.support.fakeapi import FakeApi
from tests.support.isolate import NetworkNamespace, run
from tests.support.kill_at import KillAt
from tests.support.nursery import Nursery

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("netns"),
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc"),
]
MakeNetns = Callable[[str], NetworkNamespace]


class Node:
    """An agent with a pod that runs all the time, and another one that comes and goes."""

    def __init__(self, agent: AgentProcess, kill_at: KillAt, pods: MakeNetns) -> None:
        self.kill_at = kill_at
        self.agent = agent
        self.victim = pods("victim").path
        for name in ("bystander", "victim"):
            self.agent.add_pod(name)
        self.agent.start()
        self.agent.wait_ready()
        code, answer = self.agent.call("ADD", "bystander", pods("bystander").path)
        assert code == 0, answer
        self.taken = addresses(answer)

    def add(self) -> tuple[int, dict[str, Any]]:
        return self.agent.call("ADD", "victim", self.victim)

    def delete(self) -> tuple[int, dict[str, Any]]:
        return self.agent.call("DEL", "victim", self.victim)

    def steps_of(self, call: Callable[[], tuple[int, dict[str, Any]]]) -> int:
        """Steps that the call takes, with what the agent does besides."""
        self.kill_at.order()
        assert call()[0] == 0
        steps = self.kill_at.counted
        self.kill_at.cancel()
        return steps

    def killed_at(self, step: int, call: Callable[[], tuple[int, dict[str, Any]]]) -> str:
        """The step that killed the agent, which then runs again; empty if the call took fewer."""
        self.kill_at.order(step)
        code, answer = call()
        hit = self.kill_at.hit
        if not hit:
            self.kill_at.cancel()
            assert code == 0, answer
            return ""
        assert self.agent.wait() == -signal.SIGKILL
        if code:
            # As containerd does at once after an ADD that has failed, and never again.
            assert self.delete() == (0, {})
        self.agent.start()
        self.agent.wait_ready()
        self.agent.until(lambda: not list((self.agent.run_dir / "spool").glob("[!.]*")), "spooled calls")
        connected = call == self.add and code == 0
        self.only("bystander", *(["victim"] if connected else []))
        return hit

    def only(self, *names: str) -> None:
        """Which pods have an interface, a lease and the route to its address: these, and nobody else."""
        expected = {interface_name(f"c-{name}", "eth0") for name in names}
        leases = read_leases(self.agent.folder / "lib/leases.db")
        held = [address for lease in leases for address in lease.addresses.values()]
        assert len(held) == len(set(held))
        routes = run("ip", "route", "show", "proto", "88", "type", "unicast").splitlines()
        to = {line.split()[0]: line.split()[2] for line in routes}
        for found in (host_interfaces(), {lease.interface for lease in leases}, set(to.values())):
            assert found == expected
        assert to[self.taken[0]] == interface_name("c-bystander", "eth0")


@pytest.fixture
def node(tmp_path: Path, make_netns: MakeNetns) -> Iterator[Node]:
    kill_at = KillAt(tmp_path)
    environment = kill_at.environment
    with (
        FakeApi() as api,
        Nursery(environment) as nursery,
        AgentProcess(tmp_path, api, ["--backend=nft"], environment, nursery) as agent,
    ):
        yield Node(agent, kill_at, make_netns)


def walk(node: Node, chosen: Callable[[int], list[int]]) -> set[str]:
    """Kill the agent at the chosen steps of so many, of an ADD and of a DEL; returns which calls these were."""
    steps = {"ADD": node.steps_of(node.add), "DEL": node.steps_of(node.delete)}
    assert min(steps.values()) > 10, steps
    hit = set()
    for step in chosen(steps["ADD"]):
        hit.add(node.killed_at(step, node.add))
        assert node.delete() == (0, {}), step  # as a kubelet does where an ADD has failed
        node.only("bystander")
    for step in chosen(steps["DEL"]):
        code, answer = node.add()
        assert code == 0, (step, answer)
        assert not set(addresses(answer)) & set(node.taken)
        node.only("bystander", "victim")
        hit.add(node.killed_at(step, node.delete))
        assert node.delete() == (0, {}), step
        node.only("bystander")
    return hit


def test_some_steps(node: Node) -> None:
    dice = random.Random()
    walk(node, lambda steps: sorted(dice.sample(range(1, steps + 1), 4)))


@pytest.mark.heavy
def test_every_step(node: Node) -> None:
    hit = walk(node, lambda steps: list(range(1, steps + 1)))
    assert {"pwrite64", "fdatasync", "setns"} <= hit, hit
