"""The agent starts while the API server is away: what was in force stays in force, whoever changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.layout import interface_name
from felix_py.records import Backend
from policy.model import Family, Protocol
from tests.support import kernel_state
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import OPEN, POLICY, PolicedNode
from tests.support.streams import Streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
TCP = Protocol.TCP


@pytest.fixture(params=list(Backend), ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> Iterator[PolicedNode]:
    with PolicedNode(tmp_path, Backend(request.param), make_netns) as made:
        made.prepare()
        yield made


def test_without_api_server_nothing_is_written_but_what_others_spoil(node: PolicedNode) -> None:
    before = node.kernel()
    node.start_alone()
    assert "API server" in node.ask("/readyz")[1]
    for spoil in (
        "{iptables} -F FORWARD",
        "{iptables} -F; {iptables} -t raw -F",
        "{iptables} -I FELIX-FORWARD 1 -j ACCEPT",
        "ip -{n} route del {db}",
    ):
        noticed = node.drift()
        node.do(spoil)
        eventually(lambda: node.drift() > noticed, 20)  # noqa: B023
        eventually(lambda: node.kernel() == before, 20)
    assert node.reached() == POLICY
    assert node.metric('felix_py_drift_total{kind="hook"}') >= 2
    # Nothing of all that was news to the rest of the agent.
    assert node.ask("/readyz")[0] == 503
    node.api.listen()
    node.ready()
    node.settled()
    assert node.kernel() == before


def test_what_began_while_rules_were_gone_ends_once_the_cluster_is_known(node: PolicedNode) -> None:
    node.do("{iptables} -F FORWARD")
    with Streams() as streams:
        begun = [node.stream(streams, family, "web", "db", 80) for family in Family]
        eventually(lambda: all(stream.progress > 10 for stream in begun))
        node.start()
        node.ready()
        eventually(lambda: node.metric("felix_py_flows_revoked_total") == len(begun), 20)


def test_what_began_while_a_running_agent_had_not_yet_seen_the_flush_ends(node: PolicedNode) -> None:
    node.start()
    node.ready()
    node.settled()
    with Streams() as streams, node.paused():
        kept = [node.stream(streams, family, "api", "db", 80) for family in Family]
        node.do("{iptables} -F FORWARD")
        begun = [node.stream(streams, family, "web", "db", 80) for family in Family]
        eventually(lambda: all(stream.progress > 10 for stream in begun))
        node.go_on()
        eventually(lambda: node.metric("felix_py_flows_revoked_total") == len(begun), 20)
        now, progress = time.monotonic(), [stream.progress for stream in kept]
        eventually(lambda: all(stream.progress > p + 20 for stream, p in zip(kept, progress, strict=True)))
        assert not [stream.name for stream in begun if stream.heard_after(now)]
        assert all(stream.intact for stream in kept)
    assert node.reached() == POLICY


def test_a_set_that_others_change_is_put_right_long_before_the_refresh(node: PolicedNode) -> None:
    before = kernel_state.sets()
    node.api.refuse()
    node.start("--refresh-interval", "3600")
    eventually(lambda: node.ask("/readyz")[0] == 503, 60)
    (peers,) = (name for name, members in before.items() if members == [node.addresses["api"][Family.V4]])
    node.do(f"ipset del {{ours}}-ingress {{db}}; ipset add {peers.replace('felix4', '{ours}')} {{web}}")
    eventually(lambda: kernel_state.sets() == before, 20)
    assert node.reached() == POLICY


def test_rules_that_were_flushed_while_no_agent_ran_are_put_back_as_far_as_they_are_known(
    node: PolicedNode,
) -> None:
    before = node.kernel()
    node.do("{iptables} -F FORWARD; {iptables} -t raw -F; {iptables} -I FELIX-FORWARD 1 -j ACCEPT")
    assert node.reached() == OPEN
    node.start_alone()
    eventually(lambda: node.kernel() == before, 20)
    assert node.reached() == POLICY
    node.kill()
    # Which class a number stands for is lost with the dispatch rules: whoever has a class is shut.
    node.do("{iptables} -F")
    assert node.reached() == OPEN
    node.start()
    eventually(lambda: "rules were changed while no agent ran" in node.log, 60)
    eventually(lambda: node.reached() == {pair for pair in POLICY if pair[1] != "db"}, 20)
    node.api.listen()
    node.ready()
    node.settled()


def test_another_version_writes_nothing_before_it_knows_the_cluster(node: PolicedNode) -> None:
    """What is found, it guards; but its own static rules would not fit the other's marks."""
    before = node.kernel()
    node.api.refuse()
    node.start("--no-drop-invalid")
    eventually(lambda: node.ask("/readyz")[0] == 503, 60)
    node.do("{iptables} -F FORWARD; {iptables} -F FELIX-FORWARD")
    eventually(lambda: node.kernel() == before, 20)
    assert node.reached() == POLICY


def test_a_pod_that_goes_meanwhile_is_let_go(node: PolicedNode) -> None:
    node.start_alone()
    gone = node.addresses["web"]
    node.delete_pod("web")
    eventually(
        lambda: (
            not [
                m
                for members in kernel_state.sets().values()
                for m in members
                if "felix" in m and m.split(",")[0] in gone.values()
            ]
        )
    )
    node.do("{iptables} -F FORWARD")
    eventually(lambda: node.metric('felix_py_drift_total{kind="hook"}') >= 2, 20)
    assert interface_name("web", "eth0") not in node.log.split("somebody else has changed")[-1]
    assert (
        node.metric('felix_py_drift_total{kind="link"}') == node.metric('felix_py_drift_total{kind="route"}') == 0
    )
