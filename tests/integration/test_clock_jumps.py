"""The wall clock jumps, by years, while the agent runs: nothing that it enforces goes by that clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.ipam.beside import read_leases
from felix_py.records import Backend
from policy.model import Family
from tests.support.clock import Clock
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import POLICY, PolicedNode
from tests.support.streams import Streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

YEARS = 10 * 365 * 86400.0


@pytest.mark.parametrize("seconds", [-YEARS, YEARS], ids=["back", "ahead"])
def test_the_wall_clock_jumps(
    tmp_path: Path,
    make_netns: Callable[[str], NetworkNamespace],
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
) -> None:
    clock = Clock(tmp_path / "clock", monkeypatch)
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node, Streams() as streams:
        node.set_up()
        node.stream(streams, Family.V4, "api", "db", 80)
        seen = max(denied_ids(node))
        clock.jump(seconds)
        # A pod that comes is connected, and what it may is in force: its lease is the newest by any clock.
        node.add_pod("late", app="api")
        everybody = POLICY | {pair for name in ("web", "api", "db") for pair in ((name, "late"), ("late", name))}
        eventually(lambda: node.reached() == everybody, 20)
        leases = read_leases(tmp_path / "state/leases.db")
        assert [lease.pod for lease in leases][-1] == "late"
        # A permission that ends, ends connections; a denial is told, by an id that nobody has seen.
        node.relabel("api", app="nobody")
        ends = ("-s", node.addresses["api"][Family.V4], "-d", node.addresses["db"][Family.V4])
        eventually(lambda: not run("conntrack", "-L", *ends), 30)
        eventually(lambda: node.reached() == everybody - {("api", "db")}, 20)
        eventually(lambda: max(denied_ids(node)) > seen, 20)
        node.delete_pod("late")
        assert node.ask("/readyz")[0] == 200

        # And so it is for the next life, which begins in another time than it ends in.
        node.kill()
        node.start()
        node.ready()
        clock.jump(0)
        del node.places["late"], node.addresses["late"]
        eventually(lambda: node.reached() == POLICY - {("api", "db")}, 20)
        # Ids begin with the time: this life did live in another.
        eventually(lambda: abs(max(denied_ids(node)) - seen) > YEARS * 1000 / 2, 20)
        node.relabel("api", app="api")
        node.settled()


def denied_ids(node: PolicedNode) -> list[int]:
    return [event["id"] for event in json.loads(node.ask("/denies")[1])["events"]] or [0]
