"""``felix-py explain`` and ``verify`` on the nodes of a lab, beside what real packets do."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from lab.matrix import Cell, Kind
from policy.model import Family
from tests.support.lab import LabUnderTest, describe, example
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

POLICIES = [word for number in ("10", "20", "21", "40") for word in ("-f", example(number))]

SET = "felix4-pool"


def verify(lab: LabUnderTest, node: str) -> subprocess.CompletedProcess[str]:
    return lab.lab.run(node, "felix-py", "verify", check=False)


@pytest.mark.parametrize("policies", [[], POLICIES], ids=["none", "examples"])
def test_every_node_is_as_it_should_be(lab: LabUnderTest, policies: list[str]) -> None:
    if policies:
        lab.kubectl("apply", *policies)
    try:
        lab.settle()
        for node in lab.node_names:
            done = verify(lab, node)
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.startswith(f"{node}: the kernel holds what it should: ")
    finally:
        if policies:
            lab.kubectl("delete", *policies)
            lab.settle()


def test_verify_needs_no_agent(lab: LabUnderTest) -> None:
    """Only the environment that every command on a lab's node has."""
    node = lab.node_names[0]
    done = lab.lab.run(node, "felix-py", "verify", "--agent-socket", "/nowhere", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no agent answers, so learned routes were not compared" in done.stderr


def test_what_explain_says_is_what_packets_do(lab: LabUnderTest) -> None:
    """From both ends' nodes, in which the two of them agree with policy and with the packet."""
    with lab.applied(*POLICIES):
        cells, _ = lab.settle()
        between_pods = [c for c in cells if c.attempt.source.kind is c.attempt.destination.kind is Kind.POD]
        chosen = random.Random(7)
        reached = chosen.sample([cell for cell in between_pods if cell.reached], 2)
        not_reached = chosen.sample([cell for cell in between_pods if not cell.reached], 3)
        for cell in (*reached, *not_reached):
            check(lab, cell)
    lab.settle()


def check(lab: LabUnderTest, cell: Cell) -> None:
    attempt = cell.attempt
    if attempt.source == attempt.destination:
        return
    protocol, number = attempt.port
    words = [
        attempt.source.name,
        attempt.destination.name,
        "--port",
        f"{number}/{protocol.lower()}",
        "-o",
        "json",
    ]
    words.append("--ipv4" if attempt.family is Family.V4 else "--ipv6")
    passed = []
    for node in {lab.node_of(*end.name.split("/")) for end in (attempt.source, attempt.destination)}:
        done = lab.lab.run(node, "felix-py", "explain", *words, check=False)
        assert done.returncode == (0 if cell.reached else 1), describe(cell) + done.stdout + done.stderr
        (found,) = json.loads(done.stdout)
        assert found["allowed"] is cell.reached
        views = {view["node"]: view for view in found["nodes"]}
        assert views[node]["agreement"] == "agrees"
        passed.append(views[node]["outcome"] == "accept")
    assert all(passed) is cell.reached


def test_explain_from_outside_says_what_is_intended(lab: LabUnderTest) -> None:
    with lab.applied("-f", example("10")):
        lab.settle()
        argv = ["felix-py", "explain", "-n", "shop", "web-1", "db-1", "--port", "5432", "--ipv4"]
        environment = lab.lab.environment(lab.node_names[0]) | {"KUBECONFIG": str(lab.lab.kubeconfig)}
        for name in [name for name in environment if name.startswith("FELIX_PY_")]:
            del environment[name]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "NetworkPolicies isolate shop/db-1" in done.stdout
    assert "run the same there" in done.stdout
    lab.settle()


def test_verify_finds_what_is_broken_and_the_agent_mends_it(lab: LabUnderTest) -> None:
    """By hand: a member of a set for another, which no event tells the agent of, and no count of members."""
    node = lab.node_names[0]
    wrong = "192.0.2.77"
    (right,) = [line.split()[2] for line in lab.sh(node, "ipset", "save", SET).splitlines() if "add" in line][:1]
    found: list[str] = []

    def exchange(old: str, new: str) -> None:
        lab.sh(node, "ipset", "-exist", "del", SET, old)
        lab.sh(node, "ipset", "-exist", "add", SET, new)

    def is_found() -> bool:  # unless the agent's refresh comes first
        exchange(right, wrong)
        done = verify(lab, node)
        found.append(done.stdout)
        return done.returncode == 1

    try:
        eventually(is_found, 60)
        assert f"member {right} of set {SET} is missing" in found[-1]
        assert f"nobody asked for member {wrong} of set {SET}" in found[-1]
    finally:
        exchange(wrong, right)
    eventually(lambda: verify(lab, node).returncode == 0)
