"""What a control does with a peer that announces too much, and what a route reflector passes on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgp import control
from bgp.announcement import Announcement
from bgp.attributes import words
from bgp.model import Peer
from bgp.resources import BGPFilter, FilterRule, Operations
from bgp.rib import PREFIX_LIMIT
from tests.support.bgp_scene import V4, Scene

TOR = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1", prefix_limit=10)
OTHER = replace(TOR, address="10.10.0.2", source_address="10.10.0.1")
ROUTE = ("10.9.0.2", (65000,), 0)
MANY = [f"10.244.7.{n}/32" for n in range(12)]


@pytest.fixture
def scene() -> Scene:
    scene = Scene(TOR, OTHER)
    scene.attach()
    scene.control.announce([V4])
    for peer in (TOR, OTHER):
        scene.exabgp.up(peer.address)
    scene.talk()
    scene.control.channel.take_notes()
    return scene


def notes(scene: Scene) -> list[tuple[str, str]]:
    return [(note.text, note.detail) for note in scene.control.channel.take_notes()]


def test_near_the_limit_is_said_once(scene: Scene) -> None:
    for prefix in MANY[:10]:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    assert scene.talk() == dict.fromkeys(MANY[:10], ("10.9.0.2",))
    assert notes(scene) == [("near its prefix limit", "8 of 10 prefixes; over that, the session is ended")]
    for prefix in MANY[5:10]:
        scene.exabgp.withdraw(TOR.address, prefix)
    for prefix in MANY[5:10]:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.talk()
    assert [text for text, _ in notes(scene)] == ["near its prefix limit"], "it was well below in between"


def test_over_the_limit_all_of_the_peer_goes_and_it_stays_away(scene: Scene) -> None:
    scene.exabgp.announce(OTHER.address, MANY[0], ("10.10.0.2", (65000,), 0))
    for prefix in MANY:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.talk()
    assert dict(scene.control.rib.best) == {MANY[0]: ("10.10.0.2",)}
    assert scene.control.rib.count(TOR.address) == 0
    assert notes(scene)[-1] == ("held down", "it announced more than 10 prefixes; held down for 5 min more")
    assert [status.address for status in scene.control.peers(scene.now)] == [OTHER.address]
    assert scene.control.holds(TOR)
    assert not scene.control.holds(OTHER)
    # The configuration without it: ExaBGP lets it go, and we are in sync without it.
    scene.control.configure(scene.config, [OTHER], scene.now)
    scene.control.query_neighbors()
    scene.talk()
    assert scene.control.leaving() == [TOR.address]
    scene.exabgp.remove(TOR.address)
    scene.control.query_neighbors()
    scene.talk()
    scene.wait(1)
    assert scene.control.in_sync
    scene.wait(control.HOLD_DOWN - 2)
    assert "for 1 min more" in scene.control.held_reason(TOR.address, scene.now)
    scene.wait(2)
    assert not scene.control.holds(TOR)


def test_another_limit_ends_it(scene: Scene) -> None:
    for prefix in MANY:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.talk()
    raised = replace(TOR, prefix_limit=20)
    assert scene.control.holds(TOR)
    assert not scene.control.holds(raised)
    scene.control.configure(replace(scene.config, peers=(raised, OTHER)), [raised, OTHER], scene.now)
    scene.settle()
    assert len(scene.control.rib.best) == 12
    assert scene.control.held_reason(TOR.address, scene.now) == ""


def test_a_table_that_is_read_back_is_limited_as_well(scene: Scene) -> None:
    for prefix in MANY:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.reborn()
    scene.attach()
    scene.settle()
    assert dict(scene.control.rib.best) == {}
    assert scene.control.holds(TOR)


def test_a_peer_that_restarts_may_have_as_many_other_prefixes(scene: Scene) -> None:
    for prefix in MANY[:6]:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.talk()
    scene.exabgp.down(TOR.address)
    for prefix in MANY[:6]:
        scene.exabgp.withdraw(TOR.address, prefix)
    for prefix in MANY[6:]:
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.talk()
    assert set(scene.control.rib.best) == set(MANY[6:])


def test_there_is_always_a_limit() -> None:
    free = replace(TOR, prefix_limit=0)
    scene = Scene(free)
    assert scene.control.peers(scene.now)[0].limit == PREFIX_LIMIT


# --- filters ---------------------------------------------------------------------------------------------------


def test_an_export_filter_that_changes_is_in_force_at_once(scene: Scene) -> None:
    fake = scene.exabgp.peers[TOR.address]
    mark = FilterRule(accept=True, operations=Operations(add_communities=("65000:1",)))
    for rule, expected in (
        (mark, {V4: "next-hop self community [ 65000:1 ]"}),
        (FilterRule(accept=False), {}),
        (FilterRule(accept=True), {V4: "next-hop self"}),
    ):
        filtered = replace(TOR, filters=(BGPFilter(name="f", export_v4=(rule,)),))
        scene.control.configure(replace(scene.config, peers=(filtered, OTHER)), [filtered, OTHER], scene.now)
        for _ in range(3):
            scene.wait(1)
        assert fake.installed == expected
        assert scene.exabgp.peers[OTHER.address].installed == {V4: "next-hop self"}


# --- a route reflector -----------------------------------------------------------------------------------------

CLIENTS = [
    Peer(address=f"10.9.0.{n}", asn=65001, local_asn=65001, source_address="10.9.0.1", cluster_id="1.1.1.1")
    for n in (10, 11)
]
P = "10.244.7.0/24"


@pytest.fixture
def reflector() -> Scene:
    scene = Scene(*CLIENTS)
    scene.attach()
    scene.control.announce([V4])
    scene.talk()
    return scene


def passed_on(path: tuple[int, ...] = ()) -> str:
    shown = Announcement(
        P, next_hop="10.9.0.10", as_path=path, originator_id="192.0.2.10", cluster_list=("1.1.1.1",)
    )
    return words(shown, 0)


def test_a_reflector_passes_on_what_it_learns_and_forgets(reflector: Scene) -> None:
    first, second = (reflector.exabgp.peers[client.address] for client in CLIENTS)
    reflector.exabgp.announce(first.address, P, ("10.9.0.10", (), 0))
    reflector.exabgp.up(first.address, router_id="192.0.2.10")
    reflector.exabgp.up(second.address, router_id="192.0.2.11")
    reflector.settle()
    assert second.installed == {V4: "next-hop self", P: passed_on()}
    assert first.installed == {V4: "next-hop self"}
    reflector.exabgp.announce(first.address, P, ("10.9.0.10", (65010,), 0))
    for _ in range(3):
        reflector.wait(1)
    assert second.installed[P] == passed_on((65010,))
    reflector.exabgp.withdraw(first.address, P)
    reflector.settle()
    assert second.installed == {V4: "next-hop self"}
    assert P in second.flaps


def test_a_reflector_that_starts_ends_its_table_when_it_has_its_clients(reflector: Scene) -> None:
    first, second = (reflector.exabgp.peers[client.address] for client in CLIENTS)
    second.installed = {P: passed_on(), V4: "next-hop self"}
    reflector.exabgp.up(second.address, router_id="192.0.2.11")
    reflector.settle()
    reflector.wait(1)
    assert not second.ended, "it would forget what the other client still has"
    reflector.exabgp.announce(first.address, P, ("10.9.0.10", (), 0))
    reflector.exabgp.up(first.address, router_id="192.0.2.10")
    reflector.settle()
    reflector.wait(1)
    assert second.ended
    assert second.flaps == []
    assert second.installed == {V4: "next-hop self", P: passed_on()}


def test_it_does_not_wait_for_a_client_for_ever(reflector: Scene) -> None:
    second = reflector.exabgp.peers[CLIENTS[1].address]
    reflector.exabgp.up(second.address)
    reflector.settle()
    reflector.wait(CLIENTS[0].max_restart_time + 1)
    assert second.ended


def test_an_agent_that_comes_back_to_a_reflector_changes_nothing(reflector: Scene) -> None:
    first, second = (reflector.exabgp.peers[client.address] for client in CLIENTS)
    reflector.exabgp.announce(first.address, P, ("10.9.0.10", (), 0))
    reflector.exabgp.up(first.address, router_id="192.0.2.9")
    reflector.exabgp.up(second.address, router_id="192.0.2.11")
    reflector.settle()
    reflector.reborn()
    reflector.exabgp.commands.clear()
    reflector.attach()
    reflector.control.announce([V4])
    reflector.settle()
    for _ in range(3):
        reflector.wait(1)
    assert [c for c in reflector.exabgp.commands if "nlri" in c] == []
    assert second.flaps == []
