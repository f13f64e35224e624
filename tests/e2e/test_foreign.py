"""What is not ours stays as it is."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from felix_py.layout import (
    CHAIN_PREFIX,
    COMMENT_PREFIX,
    INTERFACE_PREFIX,
    ROUTE_PROTOCOL_LEARNED,
    ROUTE_PROTOCOL_PODS,
)
from lab.namespaces import run
from lab.state import Shape
from policy.model import Family
from tests.support.lab import LabUnderTest, bring_up, example
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
RULES = (
    ("filter", "-A FORWARD -p tcp --dport 4242 -j foreign"),
    ("filter", '-A foreign -m comment --comment "somebody\'s own" -j RETURN'),
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
    """iptables-restore --noflush, as another program would."""
    argv = [*lab.lab.enter(node), f"iptables-{lab.backend}-restore", "--noflush"]
    run(*argv, stdin="".join(f"{line}\n" for line in lines))


def foreign_rules(lab: LabUnderTest, node: str) -> list[str]:
    """All rules that are not ours, in order, with their table."""
    return [
        f"{table}: {line}"
        for table, text in lab.rules(node).items()
        for line in text.splitlines()
        if CHAIN_PREFIX not in line and f'--comment "{COMMENT_PREFIX}' not in line
    ]


def foreign(lab: LabUnderTest, node: str) -> dict[str, list[str]]:
    ours = (f"proto {ROUTE_PROTOCOL_PODS}", f"proto {ROUTE_PROTOCOL_LEARNED}", f"dev {INTERFACE_PREFIX}")
    return {
        "rules": foreign_rules(lab, node),
        "sets": [line for line in lab.sets(node) if " felix4-" not in line and " felix6-" not in line],
        "routes": [line for line in lab.routes(node) if not any(mark in line for mark in ours)],
    }


def changes(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What differs, as lines; order counts within rules."""
    lines = (line for part in before for line in difflib.unified_diff(before[part], after[part], n=0))
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


@contextmanager
def foreign_things(lab: LabUnderTest, node: str) -> Iterator[None]:
    """Others have rules, sets and routes on a node too, some beside ours in the same chains."""
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
    yield
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
    assert not changes(before, foreign(lab, node))


def test_foreign_things_survive_changes_and_restarts(lab: LabUnderTest) -> None:
    node = lab.node_names[0]
    with foreign_things(lab, node):
        before = foreign(lab, node)
        assert len(before["rules"]) > len(RULES)
        with lab.applied("-f", example("11"), "-f", example("40"), "-f", example("60")):
            lab.settle()
            assert not changes(before, foreign(lab, node))
            lab.kill(node, "agent")
            lab.wait_ready(node)
            lab.settle()
            assert not changes(before, foreign(lab, node))
        lab.settle()
        assert not changes(before, foreign(lab, node))


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_cleanup_lists_and_removes_exactly_ours(backend: str, tmp_path: Path) -> None:
    """On a lab of its own, because the pods lose their network."""
    for lab in bring_up(f"cleanup{backend}", tmp_path, Shape(nodes=1, families=(4, 6), backend=backend)):
        node = lab.node_names[0]
        with lab.applied("-f", example("20")), foreign_things(lab, node):
            lab.settle()
            before = foreign(lab, node)
            check_cleanup(lab, node)
            assert not changes(before, foreign(lab, node))


def check_cleanup(lab: LabUnderTest, node: str) -> None:
    refused = lab.lab.run(node, FELIX_PY, "cleanup", check=False)
    assert refused.returncode == 1
    assert "an agent is running" in refused.stderr
    os.kill(lab.lab.machine(node).pid, signal.SIGSTOP)  # so that the agent stays away
    try:
        os.kill(lab.lab.programs(node)["agent"].pid, signal.SIGKILL)
        eventually(lambda: lab.agent(node, "/healthz")[0] == 0)
        kernel = lab.kernel(node)
        listed = lab.sh(node, FELIX_PY, "cleanup", "--dry-run")
        assert CHAIN_PREFIX in listed
        assert INTERFACE_PREFIX in listed
        assert "foreign" not in listed
        assert lab.kernel(node) == kernel
        lab.sh(node, FELIX_PY, "cleanup")
        assert lab.sh(node, FELIX_PY, "cleanup", "--dry-run") == ""
        left = lab.kernel(node)
        assert not [part for part in left.values() if CHAIN_PREFIX in str(part) or "felix4-" in str(part)]
        assert not [line for line in left["routes"] if f"proto {ROUTE_PROTOCOL_PODS}" in line]
        assert not [line for line in left["routes"] if f"proto {ROUTE_PROTOCOL_LEARNED}" in line]
        assert f": {INTERFACE_PREFIX}" not in lab.sh(node, "ip", "link")
    finally:
        os.kill(lab.lab.machine(node).pid, signal.SIGCONT)
