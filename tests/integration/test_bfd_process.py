"""The BFD process alone, with FRR's bfdd and with BIRD, and with packets that nobody should send."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.bfd import settings
from bgp.bfd.packet import State
from bgp.bfd.session import Path as PathState
from bgp.model import Peer
from bgp.resources import Bfd
from tests.support.bfd import BfdPeers, Listener, Process, bfdd, forged, silence
from tests.support.bgp import NODE4, NODE6, TOR4, TOR6
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


def peer(address: str, source: str, *, ttl_security: int = 0, **bfd: object) -> Peer:
    fields = {"interval": 200, "detect_multiplier": 20, **bfd}
    return Peer(
        address=address,
        source_address=source,
        asn=65000,
        local_asn=65001,
        ttl_security=ttl_security,
        bfd=Bfd(**fields),  # type: ignore[arg-type]
    )


def paths(listener: Listener, *peers: str) -> set[PathState | None]:
    reports = [listener.last(address) for address in peers]
    return {report.path if report else None for report in reports}


def failures(listener: Listener) -> int:
    listener.last("")
    return sum(report.path is PathState.FAILED for report in listener.reports)


NO_CAPABILITIES = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
SINGLE = f"""
bfd
 peer {NODE4} local-address {TOR4}
  transmit-interval 150
  receive-interval 250
  detect-multiplier 20
 peer {NODE6} local-address {TOR6}
  transmit-interval 150
  receive-interval 250
  detect-multiplier 20
"""


def both_up(peers: BfdPeers, listener: Listener, *addresses: str) -> bool:
    return peers.states() == {"up"} and {listener.state(address) for address in addresses} == {"UP"}


def test_one_hop_both_families(tmp_path: Path, tor: NetworkNamespace) -> None:
    with (
        bfdd(tor, SINGLE) as frr,
        Process(tmp_path / "run", NO_CAPABILITIES) as ours,
        Listener(tmp_path / "run") as said,
    ):
        ours.want(peer(TOR4, NODE4), peer(TOR6, NODE6))
        eventually(lambda: both_up(frr, said, TOR4, TOR6), 60)
        eventually(lambda: said.timers(TOR4) == said.timers(TOR6) == (250_000, 20 * 200_000), 60)
        # Other intervals, agreed on without the session going down.
        ours.want(peer(TOR4, NODE4, interval=400), peer(TOR6, NODE6, interval=100))
        eventually(lambda: said.timers(TOR4) == (400_000, 20 * 400_000), 60)
        eventually(lambda: said.timers(TOR6) == (250_000, 20 * 150_000), 60)
        assert not failures(said)
        # Taken down on purpose, there and here.
        frr.ask("conf t", "bfd", f"peer {NODE4} local-address {TOR4}", "shutdown")
        eventually(lambda: said.last(TOR4).remote_state == "ADMIN_DOWN", 60)  # type: ignore[union-attr]
        assert paths(said, TOR4) == {PathState.UNKNOWN}
        frr.ask("conf t", "bfd", f"peer {NODE4} local-address {TOR4}", "no shutdown")
        eventually(lambda: both_up(frr, said, TOR4, TOR6), 60)
        ours.want(peer(TOR6, NODE6, interval=100))
        eventually(lambda: frr.states() == {"up", "down"}, 60)
        assert {one["remote-diagnostic"] for one in frr.all()} == {"ok", "administratively down"}
        # And what is lost in silence.
        assert not failures(said)
        silence(tor)
        eventually(lambda: paths(said, TOR6) == {PathState.FAILED}, 60)
        silence(tor, end=True)
        eventually(lambda: paths(said, TOR6) == {PathState.UP}, 60)


def test_another_life_does_not_look_like_a_failure(tmp_path: Path, tor: NetworkNamespace) -> None:
    with ExitStack() as stack:
        frr = stack.enter_context(bfdd(tor, SINGLE.partition(f" peer {NODE6}")[0]))
        ours = stack.enter_context(Process(tmp_path / "run"))
        ours.want(peer(TOR4, NODE4))
        said = stack.enter_context(Listener(tmp_path / "run"))
        eventually(lambda: both_up(frr, said, TOR4), 60)
        ours.process.kill()
        ours.process.wait()
        with Process(tmp_path / "run") as again, Listener(tmp_path / "run") as then:
            again.want(peer(TOR4, NODE4))
            eventually(lambda: both_up(frr, then, TOR4), 60)
        eventually(lambda: frr.states() == {"down"}, 60)
        assert {one["remote-diagnostic"] for one in frr.all()} == {"administratively down"}


def link_local(command: Callable[..., str], device: str) -> str:
    eventually(
        lambda: (
            "fe80::" in (shown := command("ip", "-6", "address", "show", "dev", device))
            and "tentative" not in shown
        )
    )
    found = re.search(r"inet6 (fe80::[0-9a-f:]+)/", command("ip", "-6", "address", "show", "dev", device))
    assert found
    return found[1]


def test_link_local_addresses(tmp_path: Path, tor: NetworkNamespace) -> None:
    mine, theirs = link_local(run, "tor0"), link_local(tor.run, "node")
    config = f"""
    router id {TOR4};
    protocol device {{ }}
    protocol bfd {{
      interface "*" {{ interval 200 ms; multiplier 20; }};
      neighbor {mine} dev "node" local {theirs};
    }}
    """
    with (
        Bird(tor, tmp_path / "tor", config),
        Process(tmp_path / "run") as ours,
        Listener(tmp_path / "run") as said,
    ):
        ours.want(replace(peer(theirs, mine), interface="nowhere"))
        eventually(lambda: f"cannot send from {mine}" in ours.log, 60)
        ours.want(replace(peer(theirs, mine), interface="tor0"))
        eventually(lambda: said.state(theirs) == "UP", 60)
        assert said.reports[-1].interface == "tor0"


def test_several_hops(
    tmp_path: Path, tor: NetworkNamespace, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    far = make_netns("far")
    tor.run("ip", "link", "add", "far0", "type", "veth", "peer", "name", "near", "netns", far.name)
    for namespace, device, host in ((tor, "far0", 1), (far, "near", 2)):
        namespace.run("ip", "address", "add", f"10.20.0.{host}/24", "dev", device)
        namespace.run("ip", "link", "set", device, "up")
    tor.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    far.run("ip", "route", "add", "10.9.0.0/24", "via", "10.20.0.1")
    run("ip", "route", "add", "10.20.0.0/24", "via", TOR4)
    config = f"bfd\n peer {NODE4} multihop local-address 10.20.0.2\n  transmit-interval 150\n"
    with (
        bfdd(far, config) as frr,
        Process(tmp_path / "run") as ours,
        Listener(tmp_path / "run") as said,
    ):
        ours.want(peer("10.20.0.2", NODE4, multihop=True))
        eventually(lambda: both_up(frr, said, "10.20.0.2"), 60)
        # Nearer than it is: its packets come with a TTL of 254.
        ours.want(peer("10.20.0.2", NODE4, multihop=True, ttl_security=1))
        eventually(lambda: paths(said, "10.20.0.2") == {PathState.FAILED}, 60)
        assert "TTL 254 is less than 255" in ours.log
        ours.want(peer("10.20.0.2", NODE4, multihop=True, ttl_security=2))
        eventually(lambda: both_up(frr, said, "10.20.0.2"), 60)


def test_packets_that_nobody_should_send_change_nothing(tmp_path: Path, tor: NetworkNamespace) -> None:
    with (
        bfdd(tor, SINGLE) as frr,
        Process(tmp_path / "run") as ours,
        Listener(tmp_path / "run") as said,
    ):
        ours.want(peer(TOR4, NODE4), peer(TOR6, NODE6))
        eventually(lambda: both_up(frr, said, TOR4, TOR6), 60)
        tor.run("ip", "address", "add", "10.9.0.3/24", "dev", "node")
        (number,) = (one["remote-id"] for one in frr.all() if one["peer"] == NODE4)
        with tor.enter():
            forged(TOR4, NODE4, ttl=254)
            forged(TOR4, NODE4, ttl=254, your_discriminator=number)
            forged("10.9.0.3", NODE4, your_discriminator=number)
            forged("10.9.0.3", NODE4)
            forged(TOR4, NODE4, your_discriminator=(int(str(number)) + 1) % 2**32 or 1, state=State.UP)
            forged(TOR4, NODE4, my_discriminator=0)
        eventually(lambda: ours.log.count("packet ignored") == 5, 60)
        assert paths(said, TOR4, TOR6) == {PathState.UP}
        # So that these could have done something: the same with all in order does.
        with tor.enter():
            forged(TOR4, NODE4, your_discriminator=number)
        eventually(lambda: failures(said), 60)


def test_a_socket_that_somebody_has_removed_is_made_again(tmp_path: Path, tor: NetworkNamespace) -> None:
    with Process(tmp_path / "run") as ours, Listener(tmp_path / "run") as before:
        ours.want(peer(TOR4, NODE4))
        eventually(lambda: before.last(TOR4), 60)
        (tmp_path / "run" / settings.SOCKET).unlink()
        with Listener(tmp_path / "run") as after:
            eventually(lambda: after.last(TOR4), 60)
        # Whoever was connected hears on.
        ours.want(peer(TOR4, NODE4), peer(TOR6, NODE6))
        eventually(lambda: before.last(TOR6), 60)
