"""From packets to events: what is counted together, what is kept, what is left out, and how it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from felix_py import log
from felix_py.desired.deny_log import (
    ASTRAY_DROP,
    ERROR_DROP,
    HOST_DROP,
    INVALID_DROP,
    PROXIED_DROP,
    SOURCE_DROP,
    Drop,
    DropKind,
)
from felix_py.log import LogFormat, LogLevel, configure
from felix_py.metrics import Metrics
from felix_py.observe.chain_names import ChainNames
from felix_py.observe.denies import KEPT, WINDOW, Denies, TooManyFollowers
from felix_py.observe.deny_events import Decider, DenyEvent, Describer, PolicyName, Reason
from policy.ir import Chain, ChainId, ChainKind, Delta
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Direction,
    Family,
    Node,
    Pod,
    PodPeer,
    PolicyKind,
    PolicyRef,
    RuleAction,
    Selector,
    Tier,
)
from policy.names import class_chain, policy_chain
from policy.oracle.evaluate import Snapshot
from tests.support.logged import dropped

INGRESS, EGRESS = Direction.INGRESS, Direction.EGRESS
WEB = Pod("shop", "web", addresses=("10.1.0.2", "fd00::2"))
DB = Pod("shop", "db", addresses=("10.1.0.3", "fd00::3"))
PODS = PodPeer(Selector(), None)
GUARD = ClusterPolicy(
    PolicyKind.CLUSTER,
    "guard",
    Tier.BASELINE,
    5,
    PODS,
    egress=(ClusterRule(RuleAction.PASS, None), ClusterRule(RuleAction.DENY, None, None, "no-metadata")),
)


def network(name: str) -> PolicyRef:
    return PolicyRef(PolicyKind.NETWORK, "shop", name)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """Denies of a node with two pods, and the classes that a test names."""

    def __init__(self, *, lines: bool = False) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.classes: dict[ChainId, tuple[PolicyRef, ...]] = {}
        self.chains = ChainNames(lambda chain: self.classes[chain])
        self.view = view = Snapshot([], [WEB, DB], [GUARD], [Node("n2", (), ("192.0.2.2",))])
        interfaces = {9: "eth0", 7: "felix0000000007"}
        self.describer = Describer(
            "n1",
            view,
            self.chains,
            {"felix0000000007": WEB.key}.get,
            interface_name=lambda index: interfaces[index] if index in interfaces else no_interface(),
        )
        self.denies = Denies(self.describer, self.metrics, lines=lines, clock=self.clock, first_id=1)

    def isolated(self, *policies: PolicyRef, direction: Direction = INGRESS, gone: bool = False) -> Drop:
        chain = class_chain(direction, (), policies, ())
        self.classes[chain] = policies
        chains = [chain, *(policy_chain(direction, ref) for ref in policies)]
        self.chains.note(Delta(Family.V4, chains={one: Chain(one, ()) for one in chains}))
        if gone:
            self.chains.note(Delta(Family.V4, chains=dict.fromkeys(chains)))
        return Drop(DropKind.ISOLATED, direction, chain)

    def counts(self) -> list[tuple[int, int]]:
        return [(event.id, event.count) for event in self.denies.events()]

    def one(
        self, drop: Drop, source: str = "10.1.0.2", destination: str = "10.1.0.3", indev: int = 0
    ) -> DenyEvent:
        self.denies.note([dropped(drop, source, destination, indev=indev)])
        return self.denies.events()[-1]

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"felix_py_deny_log_{name}_total") or 0.0


def no_interface() -> str:
    raise OSError("no such interface")


# --- counted together --------------------------------------------------------------------------------


def test_equal_packets_within_the_window_are_one_event() -> None:
    rig = Rig()
    drop = rig.isolated(network("deny"))
    rig.denies.note([dropped(drop, when=50.0), dropped(drop, when=50.5)])
    rig.clock.now += WINDOW - 0.01
    rig.denies.note([dropped(drop, when=51.9)])
    (event,) = rig.denies.events()
    assert (event.count, event.time, event.until) == (
        3,
        "1970-01-01T00:00:50.000Z",
        "1970-01-01T00:00:51.900Z",
    )
    rig.clock.now += 0.01
    rig.denies.note([dropped(drop, when=52.0)])
    assert rig.counts() == [(1, 3), (2, 1)]


@pytest.mark.parametrize(
    "other",
    [
        {"source": "10.1.0.9"},
        {"destination": "10.1.0.9"},
        {"port": 81},
        {"port": None},
        {"protocol": 17},
        {"drop": SOURCE_DROP},
    ],
    ids=str,
)
def test_packets_that_differ_are_events_of_their_own(other: dict[str, object]) -> None:
    rig = Rig()
    drop = rig.isolated(network("deny"))
    rig.denies.note([dropped(drop), dropped(**{"drop": drop, **other}), dropped(drop)])  # type: ignore[arg-type]
    assert rig.counts() == [(1, 2), (2, 1)]


def test_a_window_closes_by_itself() -> None:
    rig = Rig()
    assert rig.denies.next_due() is None
    with rig.denies.follow() as followed:
        rig.denies.note([dropped(SOURCE_DROP)])
        rig.clock.now += 1
        rig.denies.note([dropped(HOST_DROP)])
        assert rig.denies.next_due() == 1000 + WINDOW
        rig.denies.close_due()
        assert followed.empty()
        rig.clock.now = 1000 + WINDOW
        rig.denies.close_due()
        assert followed.get_nowait().reason is Reason.SOURCE
        assert rig.denies.next_due() == 1001 + WINDOW
        assert followed.empty()
        rig.denies.close_all()
        assert followed.get_nowait().reason is Reason.HOST
        assert rig.denies.next_due() is None


def test_what_is_no_packet_of_ours_makes_no_event() -> None:
    rig = Rig()
    ours = dropped(SOURCE_DROP)
    foreign = type(ours)(ours.family, "kube: DROP", ours.header, "FORWARD", 0, 0, 0, 0.0)
    nothing = type(ours)(ours.family, ours.prefix, None, "FORWARD", 0, 0, 0, 0.0)
    rig.denies.note([foreign, nothing])
    assert rig.denies.events() == []
    assert rig.metric("packets") == 2


# --- bounds ------------------------------------------------------------------------------------------


def test_a_scan_of_many_ports_makes_a_bounded_number_of_events_and_the_rest_is_counted() -> None:
    rig = Rig()
    rig.denies.note([dropped(SOURCE_DROP, port=port) for port in range(1, 10_001)])
    made = len(rig.denies.events())
    assert made == 200
    assert rig.denies.suppressed == rig.metric("suppressed") == 10_000 - made
    # Those that are open are counted on.
    rig.denies.note([dropped(SOURCE_DROP, port=1)])
    assert rig.denies.events()[0].count == 2
    rig.clock.now += 1
    rig.denies.note([dropped(SOURCE_DROP, port=port) for port in range(20_001, 30_001)])
    assert len(rig.denies.events()) == made + 50


def test_the_newest_events_are_kept_and_no_more() -> None:
    rig = Rig()
    for number in range(KEPT + 7):
        rig.clock.now += WINDOW
        rig.denies.note([dropped(SOURCE_DROP, port=number + 1)])
    rig.clock.now += WINDOW
    events = rig.denies.events()
    assert [event.id for event in events] == list(range(8, KEPT + 8))


def test_a_follower_that_does_not_read_loses_the_oldest_and_disturbs_nobody() -> None:
    rig = Rig()
    with rig.denies.follow() as slow:
        for number in range(1200):
            rig.clock.now += WINDOW
            rig.denies.note([dropped(SOURCE_DROP, port=number + 1)])
        rig.denies.close_all()
        received = []
        while not slow.empty():
            received.append(slow.get_nowait().id)
    assert received == list(range(201, 1201))


def test_there_may_be_a_bounded_number_of_followers() -> None:
    rig = Rig()
    held = [rig.denies.follow() for _ in range(16)]
    for follower in held:
        follower.__enter__()
    with pytest.raises(TooManyFollowers), rig.denies.follow():
        pass
    held.pop().__exit__(None, None, None)
    with rig.denies.follow():
        pass


def written(capfd: pytest.CaptureFixture[str]) -> str:
    log.flush()
    return capfd.readouterr().err


def test_lines_are_bounded_and_say_how_many_were_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.INFO, LogFormat.JSON, node="n1")
    rig = Rig(lines=True)
    rig.denies.note([dropped(rig.isolated(network("deny")), port=port) for port in range(1, 101)])
    rig.clock.now += WINDOW
    rig.denies.close_due()
    lines = [json.loads(line) for line in written(capfd).splitlines()]
    assert len(lines) == 50
    assert {line["event"] for line in lines} == {"denied"}
    assert lines[0]["component"] == "denies"
    assert lines[0]["node"] == "n1"
    assert lines[0]["pod"] == "shop/db"
    assert lines[0]["source"] == {"address": "10.1.0.2", "pod": "shop/web", "port": 40000}
    assert lines[0]["policies"] == [{"kind": "NetworkPolicy", "name": "deny", "namespace": "shop"}]
    rig.clock.now += 10
    rig.denies.note([dropped(SOURCE_DROP)])
    rig.denies.close_all()
    (line,) = (json.loads(line) for line in written(capfd).splitlines())
    assert line["lines_left_out"] == 50


def test_without_lines_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    configure(LogLevel.INFO, LogFormat.JSON, node="n1")
    rig = Rig()
    rig.denies.note([dropped(SOURCE_DROP)])
    rig.denies.close_all()
    assert written(capfd) == ""


# --- words -------------------------------------------------------------------------------------------


def test_isolated_by_one_policy_and_by_many() -> None:
    rig = Rig()
    event = rig.one(rig.isolated(network("db")))
    assert event.message == "isolated by NetworkPolicy shop/db (ingress); none of its rules allows it"
    assert (event.reason, event.direction, event.endpoint) == (Reason.ISOLATED, "ingress", "shop/db")
    many = [network(name) for name in "abcdef"]
    event = rig.one(rig.isolated(*many[:2], direction=EGRESS))
    assert event.message == "isolated by NetworkPolicies shop/a, shop/b (egress); none of their rules allows it"
    assert event.endpoint == "shop/web"
    event = rig.one(rig.isolated(*many))
    assert event.message.startswith("isolated by NetworkPolicies shop/a, shop/b, shop/c and 3 more (ingress)")
    assert len(event.policies) == 6


def test_only_network_policies_isolate() -> None:
    rig = Rig()
    event = rig.one(rig.isolated(GUARD.ref, network("db")))
    assert event.message == "isolated by NetworkPolicy shop/db (ingress); none of its rules allows it"
    assert PolicyName("ClusterNetworkPolicy", "guard") in event.policies


def test_a_class_that_is_gone_is_still_named_and_one_that_never_was_is_said_to_be_gone() -> None:
    rig = Rig()
    event = rig.one(rig.isolated(network("db"), gone=True))
    assert event.message.startswith("isolated by NetworkPolicy shop/db")
    event = rig.one(Drop(DropKind.ISOLATED, INGRESS, ChainId(ChainKind.CLASS, INGRESS, "00000000000000ff")))
    assert event.message == "isolated by a policy class that is gone (ingress, FELIX-CI-00000000000000ff)"
    event = rig.one(Drop(DropKind.POLICY, INGRESS, ChainId(ChainKind.POLICY, INGRESS, "00000000000000ff"), 2))
    assert event.message == "denied by a policy that is gone (ingress, FELIX-PI-00000000000000ff)"


def test_the_memory_of_chains_that_are_gone_is_bounded() -> None:
    rig = Rig()
    first = rig.isolated(network("first"), gone=True)
    for number in range(500):
        last = rig.isolated(network(f"p{number}"), gone=True)
    assert first.chain is not None
    assert last.chain is not None
    assert rig.chains.policies(first.chain) is None
    assert rig.chains.policies(last.chain) == (network("p499"),)
    assert len(rig.chains) == 0


def test_a_pod_that_was_never_seen() -> None:
    rig = Rig()
    event = rig.one(rig.isolated())
    assert (event.reason, event.policies) == (Reason.UNKNOWN_POD, ())


def test_a_deny_rule_is_named_with_its_place_and_tier() -> None:
    rig = Rig()
    rig.isolated(GUARD.ref, direction=EGRESS)
    chain = policy_chain(EGRESS, GUARD.ref)
    event = rig.one(Drop(DropKind.POLICY, EGRESS, chain, 1), destination="192.0.2.2")
    assert event.message == 'denied by ClusterNetworkPolicy guard egress[1] "no-metadata" (Baseline tier)'
    assert event.decided_by == Decider(PolicyName("ClusterNetworkPolicy", "guard"), 1, "no-metadata", "Baseline")
    assert (event.destination.node, event.destination.pod) == ("n2", "")
    # The policy may have fewer rules by now.
    assert rig.one(Drop(DropKind.POLICY, EGRESS, chain, 7)).message.endswith("guard egress[7] (Baseline tier)")
    assert rig.one(Drop(DropKind.POLICY, EGRESS, chain)).message.endswith("guard egress (Baseline tier)")


def test_whose_the_packet_with_a_foreign_source_is_says_the_interface() -> None:
    rig = Rig()
    event = rig.one(SOURCE_DROP, source="10.1.0.3", destination="203.0.113.1", indev=7)
    assert (event.source.pod, event.source.address, event.endpoint) == ("shop/web", "10.1.0.3", "shop/web")
    assert event.message == "shop/web sent from 10.1.0.3, which is not its address"
    event = rig.one(SOURCE_DROP, source="10.1.0.77", indev=8)
    assert (event.source.pod, event.endpoint, event.in_interface) == ("", "", "")
    assert event.message == "the pod sent from 10.1.0.77, which is not its address"
    event = rig.one(SOURCE_DROP, source="10.1.0.2", indev=9)
    assert (event.source.pod, event.endpoint, event.in_interface) == ("", "", "eth0")
    assert event.message == "10.1.0.2 is the address of a pod of this node, whose interface is not eth0"


@pytest.mark.parametrize(
    ("drop", "reason", "direction"),
    [
        (INVALID_DROP, Reason.INVALID, ""),
        (HOST_DROP, Reason.HOST, "egress"),
        (PROXIED_DROP, Reason.PROXIED, ""),
        (ERROR_DROP, Reason.ERROR, "egress"),
        (ASTRAY_DROP, Reason.ASTRAY, "ingress"),
        (Drop(DropKind.CLASS, INGRESS), Reason.CLASS, "ingress"),
    ],
    ids=str,
)
def test_other_reasons(drop: Drop, reason: Reason, direction: str) -> None:
    event = Rig().one(drop)
    assert (event.reason, event.direction) == (reason, direction)
    assert event.message


def test_a_defect_of_the_describer_costs_one_batch_at_most() -> None:
    """What the reader does with it is its own affair; here, nothing stays half done."""
    rig = Rig()

    def broken(*_: object) -> DenyEvent:
        raise RuntimeError("no")

    whole: Callable[..., DenyEvent] = rig.describer.event
    rig.describer.event = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        rig.denies.note([dropped(SOURCE_DROP)])
    rig.describer.event = whole  # type: ignore[method-assign]
    rig.denies.note([dropped(SOURCE_DROP)])
    assert rig.counts() == [(1, 1)]


def test_the_last_minute_for_the_status() -> None:
    rig = Rig()
    drop = rig.isolated(network("deny"))
    assert rig.denies.recent() == {"packets": 0, "pairs": 0, "top": []}
    rig.denies.note([dropped(drop, "10.1.0.2", "10.1.0.3")])  # a minute later it is old
    rig.clock.now += 61
    rig.denies.note([dropped(drop, "10.1.0.2", "10.1.0.3", port=port) for port in (80, 80, 80, 81)])
    rig.clock.now += 30
    rig.denies.note([dropped(drop, "198.51.100.7", "10.1.0.3", port=80), dropped(drop, "10.1.0.3", "10.1.0.2")])
    recent = rig.denies.recent(2)
    assert (recent["packets"], recent["pairs"]) == (6, 4)
    assert recent["top"][0] == {"source": "shop/web", "destination": "shop/db:80/TCP", "packets": 3}
    assert len(recent["top"]) == 2
    rig.clock.now += 45
    assert rig.denies.recent()["packets"] == 2
    rig.clock.now += 3600
    assert rig.denies.recent()["packets"] == 0


def test_packets_of_an_address_that_has_gone_to_another_pod_are_its_own() -> None:
    """Within the time for which equal packets are one event."""
    rig = Rig()
    drop = rig.isolated(network("deny"))
    for holders in ([WEB, DB], [WEB, replace(DB, name="heir")], [replace(WEB, name="client")]):
        Snapshot.__init__(rig.view, [], holders, [GUARD])
        rig.one(drop)
        rig.one(drop)
    ends = [(event.source.pod, event.destination.pod, event.count) for event in rig.denies.events()]
    assert ends == [("shop/web", "shop/db", 2), ("shop/web", "shop/heir", 2), ("shop/client", "", 2)]


def test_a_follower_that_is_too_slow_knows_what_it_has_lost() -> None:
    rig = Rig()
    with rig.denies.follow() as followed:
        for port in range(1, 1102):
            rig.clock.now += WINDOW
            rig.denies.note([dropped(SOURCE_DROP, port=port)])
        rig.denies.close_all()
        assert (followed.dropped, followed.qsize()) == (101, 1000)
        assert followed.get_nowait().id == 102
