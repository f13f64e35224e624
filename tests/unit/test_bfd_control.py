"""What BFD does to the sessions of BGP, against a fake ExaBGP with its peers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bgp.bfd.session import Path
from bgp.bfd.settings import Report
from bgp.model import Peer
from bgp.resources import Bfd
from tests.support.bgp_scene import V4, V6, Scene

TOR = Peer(address="10.9.0.2", asn=65000, local_asn=65001, source_address="10.9.0.1")
TOR6 = Peer(address="fd09::2", asn=65000, local_asn=65001, source_address="fd09::1")
P, Q = "10.244.7.0/24", "10.244.8.0/24"
ROUTE = ("10.9.0.2", (65000,), 0)
TEARDOWN = "neighbor 10.9.0.2 teardown 10"


def bfd(scene: Scene, path: Path, *, age: float = 0.0, independent: bool = False) -> dict[str, tuple[str, ...]]:
    """The BFD process says something of the ToR; what changes."""
    state = "UP" if path is Path.UP else "DOWN"
    report = Report(
        peer=TOR.address,
        path=path,
        age=age,
        state=state,
        remote_state=state,
        diagnostic=0,
        remote_diagnostic=0,
        independent=independent,
        transmit_interval=300_000,
        detection_time=900_000,
    )
    scene.control.bfd(report, scene.now)
    changes = scene.control.rib.take()
    return changes | scene.talk()


def with_bfd() -> Scene:
    scene = Scene(replace(TOR, bfd=Bfd()), TOR6)
    scene.attach()
    scene.control.announce({V4, V6})
    for peer in (TOR, TOR6):
        scene.exabgp.up(peer.address)
    scene.exabgp.announce(TOR.address, P, ROUTE)
    assert scene.talk() == {P: ("10.9.0.2",)}
    return scene


def test_bfd_that_fails_takes_the_routes_and_ends_the_session_whatever_graceful_restart_says() -> None:
    scene = with_bfd()
    assert not bfd(scene, Path.UP)
    scene.wait(60)
    assert bfd(scene, Path.FAILED) == {P: ()}
    assert scene.exabgp.commands[-1] == TEARDOWN
    status = {status.address: status for status in scene.control.peers(scene.now)}
    assert (status[TOR.address].established, status[TOR.address].error) == (False, "BFD down")
    assert (status[TOR.address].bfd, status[TOR6.address].bfd) == ("DOWN", "")
    assert status[TOR6.address].established
    # It comes up again without BFD, which is no failure of that session.
    scene.exabgp.up(TOR.address)
    assert scene.talk() == {P: ("10.9.0.2",)}
    bfd(scene, Path.FAILED, age=1.0)
    assert status[TOR.address].address in {s.address for s in scene.control.peers(scene.now) if s.established}


@pytest.mark.parametrize("path", [Path.UNKNOWN, Path.UP])
def test_bfd_that_was_never_up_or_is_down_on_purpose_changes_nothing(path: Path) -> None:
    scene = with_bfd()
    assert not bfd(scene, path)
    assert TEARDOWN not in scene.exabgp.commands


@pytest.mark.parametrize("independent", [False, True])
def test_bfd_that_fails_during_a_graceful_restart(independent: bool) -> None:
    """RFC 5882, 4.3: it shares fate with the BGP that restarts, unless the peer says that it does not."""
    scene = with_bfd()
    bfd(scene, Path.UP, independent=independent)
    scene.exabgp.down(TOR.address)
    assert not scene.talk()
    assert bfd(scene, Path.FAILED, independent=independent) == ({P: ()} if independent else {})


@pytest.mark.parametrize("first", ["bfd", "exabgp"])
def test_bfd_that_failed_while_the_agent_was_away(first: str) -> None:
    scene = with_bfd()
    scene.wait(60)
    scene.reborn()
    if first == "bfd":
        bfd(scene, Path.FAILED, age=20.0)
    scene.attach()
    if first == "exabgp":
        assert dict(scene.control.rib.best) == {P: ("10.9.0.2",)}
        bfd(scene, Path.FAILED, age=20.0)
    assert not scene.control.rib.best
    assert TEARDOWN in scene.exabgp.commands


def test_bfd_that_failed_before_the_session_came_up_is_no_failure_of_it() -> None:
    scene = with_bfd()
    scene.wait(60)
    scene.reborn()
    scene.attach()
    bfd(scene, Path.FAILED, age=90.0)
    assert dict(scene.control.rib.best) == {P: ("10.9.0.2",)}


def test_updates_that_come_until_the_session_has_ended_are_not_used() -> None:
    scene = with_bfd()
    scene.wait(60)
    scene.exabgp.announce(TOR.address, Q, ROUTE)
    assert bfd(scene, Path.FAILED) == {P: ()}


def test_without_the_bfd_process_nothing_is_known() -> None:
    scene = with_bfd()
    bfd(scene, Path.UP)
    scene.control.bfd_unknown(scene.now)
    assert [status.bfd for status in scene.control.peers(scene.now)] == ["", ""]
    assert not scene.talk()
