"""What a change denies that was allowed before is among what the engine says it may have tightened."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.engine.interpret import direction_allowed
from policy.ir import ChainId, Program, SetId, Tightened
from policy.model import Direction, Family, Packet
from tests.property.test_policy_engine import EMPTY, World, events, tables
from tests.support.clusters import Cluster, clusters, family, packets
from tests.support.thorough import examples

PACKETS = packets()


def ends(packet: Packet) -> tuple[tuple[Direction, str], tuple[Direction, str]]:
    return (Direction.EGRESS, packet.source), (Direction.INGRESS, packet.destination)


class Told:
    """A world, its programs as of the last flush, and what the flush said."""

    def __init__(self) -> None:
        self.world = World()
        self.flush()

    def flush(self) -> dict[Family, Tightened]:
        told = dict.fromkeys(Family, Tightened())
        for delta in self.world.engine.flush():
            self.world.mirrors[delta.family].apply(delta)
            told[delta.family] = delta.tightened
        self.programs: dict[Family, Program] = {of: self.world.engine.program(of) for of in Family}
        self.local = {a for endpoint in self.world.endpoints.values() for a in endpoint.addresses}
        return told

    def allowed(self, packet: Packet, direction: Direction) -> bool:
        return direction_allowed(self.programs[family(packet.source)], packet, direction)

    def chains(self, address: str) -> set[ChainId | SetId]:
        keys = [key for key, endpoint in self.world.endpoints.items() if address in endpoint.addresses]
        return {chain for key in keys for chain in self.world.engine.chains_of(key)}


@settings(max_examples=examples(300), deadline=None)
@given(states=st.lists(clusters(), min_size=2, max_size=3), seed=st.integers(0, 2**32))
def test_nothing_is_denied_that_was_not_said_to_be_tightened(states: list[Cluster], seed: int) -> None:
    choices = random.Random(seed)
    told = Told()
    for event in events(EMPTY, states[0]):
        told.world.do(event)
    told.flush()
    before = states[0]
    for _ in range(5):
        wanted = tables(choices.choice(states))
        differing = [
            place for place in {**tables(before), **wanted} if tables(before).get(place) != wanted.get(place)
        ]
        for place in choices.sample(differing, min(len(differing), choices.choice((1, 1, 2, 5)))):
            told.world.do((*place, wanted.get(place)))
        sample = [
            (packet, direction)
            for packet in choices.sample(PACKETS, 300)
            for direction, address in ends(packet)
            if address in told.local and told.allowed(packet, direction)
        ]
        tightened = told.flush()
        for packet, direction in sample:
            address = dict(ends(packet))[direction]
            if address in told.local and not told.allowed(packet, direction):
                said = tightened[family(packet.source)]
                assert (
                    address in said.addresses
                    or not {packet.source, packet.destination}.isdisjoint(said.members)
                    or not told.chains(address).isdisjoint(said.chains)
                ), packet


@settings(max_examples=examples(40), deadline=None)
@given(cluster=clusters())
def test_nothing_is_said_of_what_is_told_anew_and_going_back_leaves_no_uses(cluster: Cluster) -> None:
    world = World()
    for event in events(EMPTY, cluster):
        world.do(event)
    world.engine.flush()
    for event in (*events(cluster, EMPTY), *events(EMPTY, cluster)):
        world.do(event)
    assert not any(delta.tightened != Tightened() for delta in world.engine.flush())
    for event in events(cluster, EMPTY):
        world.do(event)
    assert not any(output._uses._uses for output in world.engine._outputs.values())
