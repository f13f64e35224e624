"""Decisions of the agent's BGP side, one situation each, against a fake ExaBGP with its peers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from bgp.model import Peer
from bgp.notification import explained
from tests.support.bgp_scene import V4, V6, Scene

TOR = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
TOR6 = Peer(address="fd09::2", asn=65000, local_asn=65001, source_address="fd09::1")
P, Q, P6 = "10.244.7.0/24", "10.244.8.0/24", "fd44:7::/64"
ROUTE = ("10.9.0.2", (65000,), 0)


@pytest.fixture
def scene() -> Scene:
    return Scene(TOR, TOR6)


def test_all_then_end_of_rib_on_up_each_in_its_own_family(scene: Scene) -> None:
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(TOR.address)
    scene.exabgp.up(TOR6.address)
    scene.talk()
    assert [command for command in scene.exabgp.commands if command.startswith("neighbor")] == [
        f"neighbor 10.9.0.2 announce attributes next-hop self nlri {V4}",
        "neighbor 10.9.0.2 announce eor ipv4 unicast",
        f"neighbor fd09::2 announce attributes next-hop self nlri {V6}",
        "neighbor fd09::2 announce eor ipv6 unicast",
    ]


def test_no_end_of_rib_before_the_agent_knows_what_it_wants(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.up(TOR.address)
    scene.talk()
    assert not scene.exabgp.peers[TOR.address].ended
    scene.control.announce(set())
    scene.talk()
    assert scene.exabgp.peers[TOR.address].ended


def test_withdrawn_while_the_session_was_down(scene: Scene) -> None:
    scene.attach()
    scene.control.announce({V4, "10.244.2.0/24"})
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.exabgp.down(TOR.address)
    scene.talk()
    scene.control.announce({V4})
    scene.exabgp.up(TOR.address)
    scene.talk()
    assert set(scene.exabgp.peers[TOR.address].installed) == {V4}


def test_agent_that_comes_back_sends_no_more_than_the_difference(scene: Scene) -> None:
    scene.attach()
    scene.control.announce({V4, "10.244.2.0/24"})
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.reborn()
    scene.exabgp.commands.clear()
    scene.control.announce({V4, "10.244.3.0/24"})
    scene.attach()
    assert [c for c in scene.exabgp.commands if "nlri" in c] == [
        "neighbor 10.9.0.2 announce attributes next-hop self nlri 10.244.3.0/24",
        "neighbor 10.9.0.2 withdraw attributes next-hop self nlri 10.244.2.0/24",
    ]


def test_routes_are_kept_for_the_time_the_peer_asked_for(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    assert scene.talk() == {P: ("10.9.0.2",)}
    scene.exabgp.down(TOR.address)
    assert scene.talk() == {}
    assert scene.wait(119) == {}
    assert scene.wait(2) == {P: ()}


@pytest.mark.parametrize("reason", ["notification received (6,2)", "notification sent (4,0)"])
def test_rfc4724_4_2_no_routes_are_kept_after_a_notification(scene: Scene, reason: str) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.exabgp.down(TOR.address, reason)
    assert scene.talk() == {P: ()}
    assert scene.control.peers(scene.now)[0].error == explained(reason)


def test_rfc4724_4_2_nor_of_a_peer_that_does_not_restart_gracefully(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address, restart=False)
    scene.talk()
    scene.exabgp.down(TOR.address)
    assert scene.talk() == {P: ()}


def test_rfc4724_4_2_nor_if_it_comes_back_without_its_forwarding_state(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.exabgp.down(TOR.address)
    scene.exabgp.withdraw(TOR.address, P)
    scene.talk()
    scene.exabgp.up(TOR.address, restart=False)
    assert scene.talk() == {P: ()}


def test_rfc4724_4_1_own_restart_keeps_all_until_end_of_rib(scene: Scene) -> None:
    scene.attach()
    for prefix in (P, Q):
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.exabgp.up(TOR.address, restart=False)
    scene.talk()
    scene.exabgp.restart()
    scene.control.detached(scene.now)
    assert scene.talk() == {}
    scene.attach()
    scene.exabgp.withdraw(TOR.address, Q)
    scene.exabgp.up(TOR.address, restart=False)
    assert scene.talk() == {Q: ()}


def test_exabgp_that_dies_again_and_again_gets_no_more_time(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.talk()
    changes: dict[str, tuple[str, ...]] = {}
    for _ in range(4):
        scene.exabgp.restart()
        scene.control.detached(scene.now)
        changes |= scene.wait(TOR.max_restart_time / 2)
        scene.attach()
    assert changes == {P: ()}


def test_exabgp_that_never_comes_back(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.exabgp.restart()
    scene.control.detached(scene.now)
    assert scene.wait(TOR.max_restart_time - 1) == {}
    assert scene.wait(2) == {P: ()}


def test_in_sync_after_the_last_end_of_rib(scene: Scene) -> None:
    seen = []
    scene.attach()
    for act in (scene.exabgp.up, scene.exabgp.down):
        for peer in (TOR, TOR6):
            act(peer.address)
            scene.talk()
            scene.wait(0)
            seen.append(scene.control.in_sync)
    assert seen == [False, True, True, True], "it is about the start only"


def test_in_sync_does_not_wait_for_ever(scene: Scene) -> None:
    seen = []
    scene.attach()
    for seconds in (TOR.max_restart_time - 1, 2):
        scene.wait(seconds)
        seen.append(scene.control.in_sync)
    assert seen == [False, True]


def test_in_sync_waits_for_peers_that_have_no_route_yet() -> None:
    scene = Scene(TOR)
    scene.control.configure(replace(scene.config, peers=(TOR, TOR6)), [TOR], scene.now)
    scene.attach()
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.wait(1)
    assert not scene.control.in_sync


def test_no_peers_is_in_sync() -> None:
    scene = Scene()
    scene.wait(1)
    assert scene.control.in_sync


def test_lost_events_are_read_back(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.talk()
    scene.exabgp.withdraw(TOR.address, P)
    scene.exabgp.read()
    scene.exabgp.announce(TOR.address, Q, ROUTE)
    assert scene.talk() == {P: (), Q: ("10.9.0.2",)}
    assert "events lost, reading back" in [note.text for note in scene.control.channel.take_notes()]


def test_event_during_the_reading_is_newer_than_what_is_read(scene: Scene) -> None:
    for prefix in (P, Q):
        scene.exabgp.announce(TOR.address, prefix, ROUTE)
    scene.exabgp.up(TOR.address)
    scene.exabgp.connect()
    scene.control.attached()
    scene.exabgp.write(scene.control.channel.data_to_send())
    lines = scene.exabgp.read().splitlines(keepends=True)
    scene.exabgp.withdraw(TOR.address, P)
    event = scene.exabgp.read()
    first = next(i for i, line in enumerate(lines) if P.encode() in line)
    scene.control.receive(b"".join([*lines[:first], event, *lines[first:]]), scene.now)
    assert scene.control.rib.take() == {Q: ("10.9.0.2",)}


def test_link_local_next_hop_read_back_makes_the_peer_repeat(scene: Scene) -> None:
    scene.exabgp.announce(TOR6.address, P6, ("fe80::9", (65000,), 0))
    scene.exabgp.up(TOR6.address)
    scene.attach()
    assert "neighbor fd09::2 announce route-refresh ipv6 unicast" in scene.exabgp.commands


def test_not_in_sync_until_the_peer_repeated_a_route_whose_next_hop_is_of_no_use(scene: Scene) -> None:
    scene.exabgp.announce(TOR6.address, P6, ("fe80::9", (65000,), 0))
    scene.exabgp.up(TOR6.address)
    scene.exabgp.up(TOR.address)
    scene.exabgp.deaf_to_refresh = True
    scene.attach()
    scene.wait(5)
    assert not scene.control.in_sync, "the kernel's route would be swept as withdrawn"
    scene.exabgp.announce(TOR6.address, P6, ("fd09::2", (65000,), 0))
    scene.talk()
    scene.wait(6)
    assert scene.control.in_sync
    assert dict(scene.control.rib.best) == {P6: ("fd09::2",)}


def test_a_peer_that_never_repeats_does_not_hold_up_in_sync_for_ever(scene: Scene) -> None:
    scene.exabgp.announce(TOR6.address, P6, ("fe80::9", (65000,), 0))
    scene.exabgp.up(TOR6.address)
    scene.exabgp.up(TOR.address)
    scene.exabgp.deaf_to_refresh = True
    scene.attach()
    scene.wait(11)
    scene.wait(1)
    assert scene.control.in_sync


def test_route_known_by_its_global_next_hop_survives_reading_a_link_local_one(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.announce(TOR6.address, P6, ("fd09::2", (65000,), 0))
    scene.exabgp.up(TOR6.address)
    scene.talk()
    scene.exabgp.peers[TOR6.address].adj_in[P6] = ("fe80::9", (65000,), 0)
    scene.exabgp.disconnect()
    scene.control.detached(scene.now)
    scene.attach()
    scene.wait(20)
    assert dict(scene.control.rib.best) == {P6: ("fd09::2",)}


def test_peer_that_leaves_is_withdrawn_from_and_forgotten(scene: Scene) -> None:
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.announce(TOR.address, P, ROUTE)
    for peer in (TOR, TOR6):
        scene.exabgp.up(peer.address)
    scene.talk()
    scene.control.query_neighbors()
    scene.talk()
    scene.control.configure(replace(scene.config, peers=(TOR6,)), [TOR6], scene.now)
    assert scene.control.leaving() == [TOR.address]
    scene.control.retire(scene.control.leaving())
    assert scene.talk() == {P: ()}
    assert set(scene.exabgp.peers[TOR.address].installed) == set()
    assert set(scene.exabgp.peers[TOR6.address].installed) == {V6}
    assert not scene.control.in_effect
    scene.exabgp.remove(TOR.address)
    scene.control.query_neighbors()
    scene.talk()
    assert scene.control.in_effect


def test_peer_that_exabgp_knew_before_us_is_taken_over() -> None:
    scene = Scene(TOR)
    scene.control.announce({V4, V6})
    scene.attach()
    fake = scene.add(TOR6)
    fake.adj_out = dict.fromkeys([V6, "fd44:9::/64"], "next-hop self")
    fake.installed = dict(fake.adj_out)
    fake.table[P6] = ("fd09::2", (65000,), 0)
    scene.exabgp.disconnect()
    scene.exabgp.up(TOR6.address)
    scene.exabgp.connect()
    scene.control.attached()
    scene.talk()
    assert scene.talk() == {}
    scene.control.configure(replace(scene.config, peers=(TOR, TOR6)), [TOR, TOR6], scene.now)
    assert scene.talk() == {P6: ("fd09::2",)}
    assert set(fake.installed) == {V6}
    assert fake.ended


def test_refused_command_is_noted_and_made_good(scene: Scene) -> None:
    scene.attach()
    scene.exabgp.up(TOR.address)
    scene.talk()
    gone = scene.exabgp.peers.pop(TOR.address)
    scene.control.announce({V4})
    scene.talk()
    assert [note.text for note in scene.control.channel.take_notes()][-1] == "ExaBGP refused"
    scene.exabgp.peers[TOR.address] = gone
    scene.wait(2)
    assert set(gone.installed) == {V4}
    assert gone.ended


def test_not_in_sync_with_sessions_of_a_configuration_that_is_not_ours() -> None:
    scene = Scene(TOR)
    scene.exabgp.announce(TOR.address, P, ROUTE)
    scene.exabgp.up(TOR.address)
    changed = replace(TOR, asn=65009)
    scene.config = replace(scene.config, peers=(changed,))
    scene.reborn()
    scene.attach()
    scene.wait(20)
    assert not scene.control.in_sync
    scene.exabgp.remove(TOR.address)
    scene.add(changed)
    scene.control.query_neighbors()
    scene.talk()
    scene.exabgp.up(TOR.address)
    scene.exabgp.announce(TOR.address, P, ("10.9.0.2", (65009,), 0))
    scene.talk()
    scene.wait(200)
    assert scene.control.in_sync


DUAL = replace(TOR6, families=(4, 6), next_hops=("10.9.0.1", "fd09::1"))


def nlri(scene: Scene) -> list[str]:
    return [command for command in scene.exabgp.commands if "nlri" in command]


def test_ipv4_over_an_ipv6_session_has_an_explicit_next_hop() -> None:
    scene = Scene(DUAL)
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(DUAL.address)
    scene.talk()
    assert scene.exabgp.peers[DUAL.address].ended == {4, 6}
    assert nlri(scene) == [
        f"neighbor fd09::2 announce attributes next-hop 10.9.0.1 nlri {V4}",
        f"neighbor fd09::2 announce attributes next-hop self nlri {V6}",
    ]


def test_another_next_hop_of_ours_is_announced_again() -> None:
    scene = Scene(DUAL)
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(DUAL.address)
    scene.talk()
    scene.exabgp.commands.clear()
    scene.control.configure(scene.config, [replace(DUAL, next_hops=("fd09::1",))], scene.now)
    for _ in range(3):
        scene.wait(1)
    assert nlri(scene) == [f"neighbor fd09::2 announce attributes next-hop fd09::1 nlri {V4}"]


def test_a_family_that_the_peer_does_not_have_is_not_announced() -> None:
    scene = Scene(replace(DUAL, families=(4, 6)))
    scene.exabgp.peers[DUAL.address].families = (6,)
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(DUAL.address)
    scene.talk()
    assert nlri(scene) == [f"neighbor fd09::2 announce attributes next-hop self nlri {V6}"]
    scene.reborn()
    scene.control.announce({V4, V6})
    scene.attach()
    scene.talk()
    assert set(scene.exabgp.peers[DUAL.address].installed) == {V6}


BY_IPV6 = replace(DUAL, next_hops=("fd09::1",))
NO_RFC_8950 = "IPv6 next hops of IPv4 are not agreed on (RFC 8950)"


def refused(scene: Scene) -> tuple[dict[str, Mapping[str, str]], int, str]:
    (status,) = scene.control.peers(scene.now)
    return scene.control.refused(), status.refused, status.refusal


def test_ipv4_by_ipv6_next_hops_is_for_a_peer_that_takes_them() -> None:
    """RFC 8950, 4. What the peer said in its OPEN counts, also for an agent that was not there then."""
    scene = Scene(BY_IPV6)
    peer = scene.exabgp.peers[DUAL.address]
    peer.extended_next_hop = False
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(DUAL.address)
    scene.talk()
    assert set(peer.installed) == {V6}
    assert peer.ended == {4, 6}
    expected = {DUAL.address: {V4: NO_RFC_8950}}, 1, NO_RFC_8950
    assert refused(scene) == expected
    said = [(note.text, note.detail) for note in scene.control.channel.take_notes() if note.warning]
    assert said == [("IPv4 prefixes cannot be announced", NO_RFC_8950)]
    scene.reborn()
    scene.attach()
    scene.control.announce({V4, V6})
    scene.talk()
    assert (set(peer.installed), refused(scene)) == ({V6}, expected)
    scene.control.announce({V6})
    scene.talk()
    assert refused(scene) == ({DUAL.address: {}}, 0, "")


def test_a_router_that_comes_back_with_less_or_more_than_it_had() -> None:
    scene = Scene(BY_IPV6)
    peer = scene.exabgp.peers[DUAL.address]
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(DUAL.address)
    scene.talk()
    assert set(peer.installed) == {V4, V6}
    for extended in (False, True):
        scene.exabgp.down(DUAL.address)
        scene.talk()
        assert refused(scene)[1:] == (0, "")
        peer.extended_next_hop = extended
        scene.exabgp.up(DUAL.address)
        for _ in range(3):
            scene.wait(1)
        assert set(peer.installed) == ({V4, V6} if extended else {V6})
        assert set(peer.adj_out) == set(peer.installed), "nor is it kept for a later session"
        assert refused(scene)[1] == (not extended)


def test_what_was_agreed_on_is_known_though_the_open_was_lost() -> None:
    scene = Scene(BY_IPV6)
    peer = scene.exabgp.peers[DUAL.address]
    scene.attach()
    scene.control.announce({V4, V6})
    peer.extended_next_hop = False
    scene.exabgp.up(DUAL.address)
    scene.talk()
    # The session ends and comes up with the agent's connection broken off and on: no event of it arrives.
    scene.exabgp.down(DUAL.address)
    scene.exabgp.read()
    peer.extended_next_hop = True
    scene.exabgp.up(DUAL.address)
    scene.exabgp.read()
    scene.control.query_neighbors()
    for _ in range(3):
        scene.wait(1)
    assert set(peer.installed) == {V4, V6}


def test_a_family_that_is_added_is_announced_once_the_session_has_it() -> None:
    scene = Scene(TOR6)
    scene.attach()
    scene.control.announce({V4, V6})
    scene.exabgp.up(DUAL.address)
    scene.talk()
    scene.control.configure(scene.config, [DUAL], scene.now)
    scene.talk()
    scene.exabgp.down(DUAL.address)
    scene.exabgp.peers[DUAL.address].families = (4, 6)
    scene.exabgp.up(DUAL.address)
    scene.talk()
    assert set(scene.exabgp.peers[DUAL.address].installed) == {V4, V6}


def test_a_link_local_next_hop_has_the_interface_of_its_session() -> None:
    scene = Scene(replace(DUAL, address="fe80::2", source_address="fe80::1", interface="eth0"))
    scene.attach()
    scene.exabgp.announce("fe80::2%eth0", P, ("fe80::2", (65000,), 0))
    scene.exabgp.up("fe80::2%eth0")
    assert scene.talk() == {P: ("fe80::2%eth0",)}
    scene.reborn()
    scene.attach()
    assert scene.talk() == {} == scene.wait(1)
    assert dict(scene.control.rib.best) == {P: ("fe80::2%eth0",)}
