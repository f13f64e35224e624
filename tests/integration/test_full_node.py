"""A node as full as a kubelet makes it: 110 pods come and go at once, many times, and nothing is left over."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from felix_py.ipam.beside import read_leases
from felix_py.layout import interface_name
from tests.support.agent_process import AgentProcess
from tests.support.cni import addresses, host_interfaces
from tests.support.fakeapi import POLICIES, FakeApi
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(1800)]
MakeNetns = Callable[[str], NetworkNamespace]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        spec = {"podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}]}
        api.put(POLICIES, {"metadata": {"name": "web", "namespace": "default", "uid": "u"}, "spec": spec})
        yield api


class Kubelet:
    """``running``: addresses by pod."""

    def __init__(self, agent: AgentProcess, places: list[NetworkNamespace]) -> None:
        self._agent = agent
        self._places = places
        self.running: dict[int, list[str]] = {}
        for number in range(len(places)):
            agent.add_pod(f"pod-{number}", app="web" if number % 2 else "db")

    def turn(self, chosen: list[int]) -> None:
        """Of the chosen pods those that run end, and the others start, all at once."""
        with ThreadPoolExecutor(len(chosen)) as pool:
            for number, found in zip(chosen, pool.map(self._call, chosen), strict=True):
                if self.running.pop(number, None) is None:
                    self.running[number] = found

    def _call(self, number: int) -> list[str]:
        command = "DEL" if number in self.running else "ADD"
        code, answer = self._agent.call(command, f"pod-{number}", self._places[number].path)
        assert code == 0, answer
        return addresses(answer) if command == "ADD" else []

    def check(self) -> None:
        """Each pod that runs has an address that no other has, a route and a source binding; nobody else does."""
        ends = {interface_name(f"c-pod-{number}", "eth0"): own for number, own in self.running.items()}
        held = [address for own in ends.values() for address in own]
        assert len(set(held)) == len(held) == len(ends)
        assert set(host_interfaces()) == set(ends)
        routes = [
            line.split() for line in run("ip", "route", "show", "proto", "88").splitlines() if " dev " in line
        ]
        assert {(words[0], words[2]) for words in routes} == {(own[0], end) for end, own in ends.items()}
        bound = {f"{own[0]},{end}" for end, own in ends.items()}
        assert {member.split()[0] for member in members("felix4-source")} == bound
        assert {member.split()[0] for member in members("felix4-ingress")} == set(held)


def members(name: str) -> list[str]:
    return run("ipset", "list", name).partition("Members:\n")[2].splitlines()


@pytest.mark.parametrize(("pods", "turns"), [(30, 2), pytest.param(110, 10, marks=pytest.mark.heavy)])
def test_a_full_node_comes_and_goes(
    tmp_path: Path, api: FakeApi, make_netns: MakeNetns, pods: int, turns: int
) -> None:
    dice = random.Random(pods)
    with AgentProcess(tmp_path, api, ["--backend=nft"]) as agent:
        kubelet = Kubelet(agent, [make_netns(f"p{number}") for number in range(pods)])
        agent.start()
        agent.wait_ready()
        kubelet.turn(list(range(pods)))
        kubelet.check()
        for _ in range(turns):
            kubelet.turn(dice.sample(range(pods), pods))
            kubelet.check()
            kubelet.turn(dice.sample(range(pods), pods // 2))
            kubelet.check()
        kubelet.turn(list(kubelet.running))
        kubelet.check()
        assert not kubelet.running
        agent.stop()
    assert not read_leases(tmp_path / "lib" / "leases.db")
