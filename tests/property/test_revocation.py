"""Whatever changes: the connections that live on are those that the rules would let begin now, and no others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.agent.concerned import Due
from felix_py.agent.revoke import Revoker
from felix_py.dataplane.fake import FakeFlowTable
from felix_py.dataplane.protocols import FlowTable
from felix_py.metrics import Metrics
from felix_py.records import Flow
from policy.engine.interpret import direction_allowed
from policy.model import ClusterPolicy, Direction, Family, LocalEndpoint, Packet
from tests.property.test_cluster_view import Fed
from tests.property.test_policy_engine import Event, World, tables
from tests.support.clusters import NODE, Cluster, clusters, family, packets
from tests.support.thorough import examples

T = TypeVar("T")

PACKETS = packets()
HOST = frozenset(NODE)


_WEIGHTS = {"policy": 4, "pod": 4, "namespace": 3, "endpoint": 1, "node": 1}
"""How likely a change is one of such objects."""


class Direct:
    """The table without a thread."""

    def __init__(self, table: FlowTable) -> None:
        self.table = table

    async def call(self, work: Callable[[FlowTable], T]) -> T:
        return work(self.table)


class Node:
    """Engine, view and revoker fed alike, and a table with connections."""

    def __init__(self) -> None:
        self.world = World()
        self.fed = Fed()
        self.table = FakeFlowTable()
        view, engine = self.fed.view, self.world.engine
        flows = Direct(self.table)
        self.due = Due()
        self.revoker = Revoker(view, engine.chains_of, flows, self.due, lambda: HOST, Metrics())  # type: ignore[arg-type]

    def step(self, target: Cluster, count: int, choices: random.Random) -> None:
        """Take over some of what another state has and this one has not, in one apply or several."""
        wanted = tables(target)
        for _ in range(count):
            differing: dict[str, list[tuple[str, Any]]] = {}
            for place in sorted({**self.fed.known, **wanted}, key=repr):
                if self.fed.known.get(place) != wanted.get(place):
                    differing.setdefault(place[0], []).append(place)
            if not differing:
                break
            kind = choices.choices([*differing], [_WEIGHTS[kind] for kind in differing])[0]
            place = choices.choice(differing[kind])
            self.do((*place, wanted.get(place)))
            if choices.random() < 0.3:
                self.apply()
        self.apply()

    def do(self, event: Event) -> None:
        kind, key, record = event
        held = self.fed.known.get((kind, key))
        before, after = (set(of.addresses) if isinstance(of, LocalEndpoint) else set() for of in (held, record))
        if any(self.fed.holders(address) - {key} for address in after):
            return  # an address is leased once
        # As the CNI plugin does it; and nobody has an address of the node's that is not leased.
        self.table.forget(before ^ after)
        self.world.do(event)
        self.fed.do(event)

    def apply(self) -> None:
        self.fed.view.advance()
        for delta in self.world.engine.flush():
            self.world.mirrors[delta.family].apply(delta)
            self.revoker.collected(delta)
        self.revoker.applied(())
        self.programs = {of: mirror.program() for of, mirror in self.world.mirrors.items()}

    def revoke(self) -> None:
        # The steps that hypothesis makes up are no coroutines, and a pass leaves nothing to its loop.
        asyncio.run(self.revoker._pass(self.due.take()))

    def local(self) -> set[str]:
        return set(self.fed.view.endpoint_addresses())

    def rules_allow(self, packet: Packet) -> bool:
        """What the compiled rules do with a new connection. What the node sends to its pods never meets them."""
        program = self.programs[family(packet.source)]
        local = self.local()
        return (packet.source not in local or direction_allowed(program, packet, Direction.EGRESS)) and (
            packet.destination not in local
            or packet.source in HOST
            or direction_allowed(program, packet, Direction.INGRESS)
        )

    def ignorant(self, packet: Packet) -> bool:
        """Whether the rules know less or more than the oracle asks.

        They deny what they do not know: a pod never seen, or which cluster policies select it. An address that
        two pods claim for a moment is in the sets of both; a pod is not itself at an address that it lost; and to
        itself, by a service, it is a peer no more once its containers have ended, though its interface is there.
        """
        sender = self.fed.pod_at(packet.source)
        if packet.source == packet.destination:
            if sender is None:
                return True
        elif sender == self.fed.pod_at(packet.destination) is not None:
            return True
        tiers = any(isinstance(policy, ClusterPolicy) for policy in self.fed.known.values())
        for address in (packet.source, packet.destination):
            if self.claims(address) > 1:
                return True
            key = self.fed.endpoint_at(address)
            if key is not None:
                unknown = ("namespace", ("", key[0])) not in self.fed.known
                if key not in self.fed.remembered or (tiers and unknown):
                    return True
        return False

    def claims(self, address: str) -> int:
        """How many pods an address is taken for."""
        holders = self.fed.holders(address)
        return sum(
            kind == "pod" and pod.active and not pod.host_network and (address in pod.addresses or key in holders)
            for (kind, key), pod in self.fed.known.items()
        )

    def connect(self, wanted: Iterable[Packet]) -> None:
        """New connections, those that the rules let begin."""
        for packet in wanted:
            flow = Flow(packet.source, packet.destination, packet.protocol, packet.port)
            if self.rules_allow(_packet(flow)):
                self.table.connect(flow)


def _packet(flow: Flow) -> Packet:
    assert flow.protocol is not None
    # What a pod sends to itself is seen outside of it only if it went to a service.
    by_service = flow.source == flow.destination
    return Packet(flow.source, flow.destination, flow.protocol, flow.port, by_service)


@settings(max_examples=examples(150), deadline=None)
@given(states=st.lists(clusters(), min_size=2, max_size=3), seed=st.integers(0, 2**32))
def test_what_lives_on_is_what_the_rules_would_let_begin(states: list[Cluster], seed: int) -> None:
    choices = random.Random(seed)
    node = Node()
    node.step(states[0], 60, choices)
    for _ in range(8):
        node.revoke()
        local = node.local()
        concerned = [p for p in PACKETS if p.source in local or p.destination in local]
        node.connect(choices.sample(concerned, min(len(concerned), 100)))
        there = set(node.table.connections)
        # Small steps: what changes by itself must be noticed by itself.
        node.step(choices.choice(states), choices.choice((1, 1, 1, 2, 5)), choices)
        there &= set(node.table.connections)
        node.revoke()
        for flow in there:
            packet = _packet(flow)
            if not node.ignorant(packet):
                assert (flow in node.table.connections) is node.rules_allow(packet), packet


@settings(max_examples=examples(60), deadline=None)
@given(first=clusters(), then=clusters(), seed=st.integers(0, 2**32))
def test_what_is_not_known_ends_no_connection(first: Cluster, then: Cluster, seed: int) -> None:
    """The pods' objects are not there (yet): an agent that starts before it has heard of them, say."""
    choices = random.Random(seed)
    node = Node()
    bare = Cluster({}, {}, then.policies, first.endpoints, {})
    node.step(bare, 60, choices)
    for packet in choices.sample(PACKETS, 200):
        node.table.connect(Flow(packet.source, packet.destination, packet.protocol, packet.port))
    there = dict(node.table.connections)
    node.revoke()
    assert node.table.connections == there
    for of in Family:
        assert node.world.mirrors[of].program() == node.world.engine.program(of)
