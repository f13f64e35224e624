"""The agent starts while the API server is away: what was in force stays in force, whoever changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.plan.layout import interface_name
from felix_py.records import Backend, DriftKind
from policy.model import Family, Packet, Protocol
from tests.support import kernel_state
from tests.support.bird import eventually
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import LiveNode
from tests.support.streams import Streams
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
TCP = Protocol.TCP
POLICY = {("api", "db"), ("api", "web"), ("db", "web"), ("web", "api"), ("db", "api")}
"""Who reaches whom while policy is in force, and without it."""
OPEN = POLICY | {("web", "db")}


class GuardedNode(LiveNode):
    """The pod db lets in api and nobody else; web lets in everybody. The agent has run, and was killed."""

    def prepare(self) -> None:
        self.allow("db", {"app": "db"}, {"app": "api"})
        self.start()
        self.ready()
        for name in ("web", "api", "db"):
            self.add_pod(name, app=name)
        self.settled()
        self.kill()

    def settled(self) -> None:
        """Until policy is right on real packets."""
        eventually(lambda: self.reached() == POLICY, 20)

    def reached(self) -> set[tuple[str, str]]:
        """Who gets an answer from whom on TCP port 80, in both families alike."""
        tries = {
            Packet(source, target, TCP, 80): (client, server)
            for client in self.places
            for server in self.places
            if client != server
            for source, target in zip(
                self.addresses[client].values(), self.addresses[server].values(), strict=True
            )
        }
        places = [(self.places[n], a, TCP, 80) for n, of in self.addresses.items() for a in of.values()]
        with serve(places):
            answered = attempt([(self.places[pair[0]], packet) for packet, pair in tries.items()], 1)
        found = {tries[packet] for packet in answered}
        assert len(answered) == 2 * len(found), f"one family only: {answered}"
        return found

    def start_alone(self) -> None:
        """Start while the API server refuses connections, until the agent answers."""
        self.api.refuse()
        self.start()
        eventually(lambda: self.ask("/readyz")[0] == 503, 60)

    def kernel(self) -> dict[str, object]:
        assert self.backend is not None
        return kernel_state.everything(self.backend)

    def drift(self) -> float:
        """How much others have changed so far."""
        return sum(self.metric(f'felix_py_drift_total{{kind="{kind}"}}') for kind in DriftKind)

    def do(self, commands: str) -> None:
        """Run commands of another program, for each family."""
        for family in Family:
            tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{self.backend}"
            names = {"iptables": tool, "ours": f"felix{int(family)}", "n": str(int(family))}
            for name, addresses in self.addresses.items():
                names[name] = addresses[family]
            for command in commands.format(**names).split(";"):
                run(*command.split())


@pytest.fixture(params=list(Backend), ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> Iterator[GuardedNode]:
    with GuardedNode(tmp_path, Backend(request.param), make_netns) as made:
        made.prepare()
        yield made


def test_without_api_server_nothing_is_written_but_what_others_spoil(node: GuardedNode) -> None:
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


def test_what_began_while_rules_were_gone_ends_once_the_cluster_is_known(node: GuardedNode) -> None:
    node.do("{iptables} -F FORWARD")
    with Streams() as streams:
        begun = [node.stream(streams, family, "web", "db", 80) for family in Family]
        eventually(lambda: all(stream.progress > 10 for stream in begun))
        node.start()
        node.ready()
        eventually(lambda: node.metric("felix_py_flows_revoked_total") == len(begun), 20)


def test_a_set_that_others_change_is_put_right_at_the_refresh(node: GuardedNode) -> None:
    before = kernel_state.sets()
    node.api.refuse()
    node.start("--refresh-interval", "1")
    eventually(lambda: node.ask("/readyz")[0] == 503, 60)
    (peers,) = (name for name, members in before.items() if members == [node.addresses["api"][Family.V4]])
    node.do(f"ipset del {{ours}}-ingress {{db}}; ipset add {peers.replace('felix4', '{ours}')} {{web}}")
    eventually(lambda: kernel_state.sets() == before, 20)
    assert node.reached() == POLICY


def test_rules_that_were_flushed_while_no_agent_ran_are_put_back_as_far_as_they_are_known(
    node: GuardedNode,
) -> None:
    before = node.kernel()
    node.do("{iptables} -F FORWARD; {iptables} -t raw -F")
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


def test_another_version_writes_nothing_before_it_knows_the_cluster(node: GuardedNode) -> None:
    """What is found, it guards; but its own static rules would not fit the other's marks."""
    before = node.kernel()
    node.api.refuse()
    node.start("--no-drop-invalid")
    eventually(lambda: node.ask("/readyz")[0] == 503, 60)
    node.do("{iptables} -F FORWARD; {iptables} -F FELIX-FORWARD")
    eventually(lambda: node.kernel() == before, 20)
    assert node.reached() == POLICY


def test_a_pod_that_goes_meanwhile_is_let_go(node: GuardedNode) -> None:
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
