"""What is not ours stays as it is (issue: "It must show", 6)."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from felix_py.plan.layout import CHAIN_PREFIX, INTERFACE_PREFIX, ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from policy.model import Family
from tests.support.lab import LabUnderTest, eventually, example

pytestmark = [pytest.mark.root, pytest.mark.e2e]

RULES = (
    ("filter", "-A FORWARD -p tcp --dport 4242 -j foreign"),
    ("filter", "-A foreign -m comment --comment \"somebody's own\" -j RETURN"),
    ("filter", "-I INPUT 1 -p tcp --dport 4243 -j foreign"),
    ("nat", "-A POSTROUTING -s 198.18.0.0/15 -j ACCEPT"),
    ("mangle", "-I FORWARD 1 -p tcp --dport 4244 -j MARK --set-xmark 0x1/0x1"),
    ("raw", "-A PREROUTING -p udp --dport 4245 -j ACCEPT"),
)
SETS = ("create foreign hash:ip family inet", "create not-felix4 hash:net family inet")
ROUTES = {
    Family.V4: (("198.18.1.0/24", "static"), ("10.244.77.0/24", "static"), ("198.18.2.0/24", "bird")),
    Family.V6: (("2001:db8:77::/64", "static"),),
}


def restore(lab: LabUnderTest, node: str, *lines: str) -> None:
    """iptables-restore --noflush; without the lab's command line in between, as another program would."""
    argv = [*lab.lab.enter(node), f"iptables-{lab.backend}-restore", "--noflush"]
    from felix_py.lab.namespaces import run

    run(*argv, stdin="".join(f"{line}\n" for line in lines))


def foreign_rules(lab: LabUnderTest, node: str) -> list[str]:
    """All rules that are not ours, in order, with their table."""
    return [
        f"{table}: {line}"
        for table, text in lab.rules(node).items()
        for line in text.splitlines()
        if CHAIN_PREFIX not in line
    ]


def foreign(lab: LabUnderTest, node: str) -> dict[str, list[str]]:
    ours = (f"proto {ROUTE_PROTOCOL_PODS}", f"proto {ROUTE_PROTOCOL_LEARNED}", f"dev {INTERFACE_PREFIX}")
    return {
        "rules": foreign_rules(lab, node),
        "sets": [line for line in lab.sets(node) if " felix4-" not in line and " felix6-" not in line],
        "routes": [line for line in lab.routes(node) if not any(mark in line for mark in ours)],
    }


@pytest.fixture
def node_with_foreign_things(lab: LabUnderTest) -> Iterator[str]:
    """A node on which others have rules, sets and routes too, some beside ours in the same chains."""
    node = lab.node_names[0]
    before = foreign(lab, node)
    for table, rule in RULES:
        chain = [":foreign - [0:0]"] if table == "filter" and "FORWARD" in rule else []
        restore(lab, node, f"*{table}", *chain, rule, "COMMIT")
    for line in SETS:
        lab.sh(node, "ipset", *line.split())
    lab.sh(node, "ipset", "add", "foreign", "198.18.0.1")
    for family, routes in ROUTES.items():
        gateway = lab.nodes[0].gateways[family]
        for prefix, protocol in routes:
            lab.sh(node, "ip", f"-{int(family)}", "route", "add", prefix, "via", gateway, "proto", protocol)
    yield node
    for table, rule in reversed(RULES):
        words = rule.split(maxsplit=2)
        body = words[2].removeprefix("1 ")
        restore(lab, node, f"*{table}", f"-D {words[1]} {body}", "COMMIT")
    restore(lab, node, "*filter", "-X foreign", "COMMIT")
    for name in ("foreign", "not-felix4"):
        lab.sh(node, "ipset", "destroy", name)
    for family, routes in ROUTES.items():
        for prefix, _ in routes:
            lab.sh(node, "ip", f"-{int(family)}", "route", "del", prefix)
    assert foreign(lab, node) == before


def test_foreign_things_survive_changes_and_restarts(lab: LabUnderTest, node_with_foreign_things: str) -> None:
    node = node_with_foreign_things
    before = foreign(lab, node)
    assert len(before["rules"]) > len(RULES)
    with lab.applied("-f", example("11"), "-f", example("40"), "-f", example("60")):
        lab.settle()
        assert foreign(lab, node) == before
        lab.kill(node, "agent")
        lab.wait_ready(node)
        lab.settle()
        assert foreign(lab, node) == before
    lab.settle()
    assert foreign(lab, node) == before


def test_cleanup_lists_and_removes_exactly_ours(lab: LabUnderTest, node_with_foreign_things: str) -> None:
    node = node_with_foreign_things
    program = str(next(p for p in lab.lab.state.machine(node).joinpath("spec.json").read_text().split('"')
                       if p.endswith("/felix-py")))  # fmt: skip
    before = foreign(lab, node)
    supervisor = lab.lab.machine(node).pid
    with lab.applied("-f", example("20")):
        lab.settle()
        os.kill(supervisor, signal.SIGSTOP)  # so that the agent stays away
        try:
            agent = lab.lab.programs(node)["agent"].pid
            os.kill(agent, signal.SIGKILL)
            eventually(lambda: lab.agent(node, "/healthz")[0] == 0)
            kernel = lab.kernel(node)
            listed = lab.sh(node, program, "cleanup", "--dry-run")
            assert CHAIN_PREFIX in listed
            assert "foreign" not in listed
            assert lab.kernel(node) == kernel
            lab.sh(node, program, "cleanup")
            assert foreign(lab, node) == before
            left = lab.kernel(node)
            assert not [part for part in left.values() if CHAIN_PREFIX in str(part) or "felix4-" in str(part)]
            assert not [line for line in left["routes"] if f"proto {ROUTE_PROTOCOL_LEARNED}" in line]
        finally:
            os.kill(supervisor, signal.SIGCONT)
