"""Speaker, sidecar and ExaBGP on one side, a real BIRD 2 as ToR on the other: eBGP, both families."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry

from bgp import session
from bgp.sidecar import CONFIG, RUNNING, SOCKET
from felix_py import speaker
from felix_py.observe.bgp_http import BgpRoutes
from felix_py.observe.health import HealthServer
from felix_py.observe.listener import listen_for
from tests.support.bgp import TOR4, TOR6, TOR_ASN, agent, alive, config, link
from tests.support.bgp_rack import LEARNED4, LEARNED6, TIME, V4, V6, Rack, bird_config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


async def test_routes_go_both_ways(rack: Rack) -> None:
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(rack.announced)
        await asyncio.wait_for(node.speaker.wait_in_sync(), 60)
        assert dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)}
        assert [(p.address, p.established, p.received) for p in node.speaker.peers()] == [
            (TOR4, True, 1),
            (TOR6, True, 1),
        ]
        node.speaker.announce({V4, V6, "10.244.2.0/25"})
        await until(lambda: rack.tor.routes("node4") == {V4, "10.244.2.0/25"})
        node.speaker.announce({V4, V6})
        await until(rack.announced)
        rack.tor.birdc("disable", "s4")
        await until(lambda: dict(node.speaker.routes()) == {LEARNED6: (TOR6,)})
        assert {LEARNED4: ()} in node.changes


async def bgp(place: Path, *words: str) -> tuple[int, str]:
    """Exit code and output of ``felix-py bgp``, as of a node whose agent listens at ``place``."""
    argv = [FELIX_PY, "bgp", *words, "--agent", str(place)]
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_the_command_shows_sessions_and_routes_and_why(rack: Rack) -> None:
    place = rack.folder / "agent.sock"
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: rack.announced() and len(node.speaker.routes()) == 2)
        with listen_for("0", place) as listener:
            server = HealthServer(CollectorRegistry(), dict, dict, nothing, BgpRoutes(node.speaker).routes())
            await server.start(private=listener)
            try:
                code, said = await bgp(place, "peers")
                header, *lines = said.splitlines()
                assert (code, header.split()) == (0, ["PEER", "AS", "STATE", "SINCE", "IN", "OUT", "WHY"])
                rows = [line.split() for line in lines]
                assert [(row[0], row[1], row[2], *row[4:]) for row in rows] == [
                    (TOR4, str(TOR_ASN), "up", "1", "1"),
                    (TOR6, str(TOR_ASN), "up", "1", "1"),
                ]
                code, said = await bgp(place, "routes")
                assert (code, [line.split() for line in said.splitlines()[1:]]) == (
                    0,
                    [[LEARNED4, TOR4], [LEARNED6, TOR6]],
                )
                code, said = await bgp(place, "announced", "--json")
                told = json.loads(said)["announced"]
                assert (code, {one["prefix"]: one["peers"] for one in told}) == (0, {V4: [TOR4], V6: [TOR6]})
                inside = LEARNED4.replace(".0/24", ".7")
                code, said = await bgp(place, "explain", inside)
                assert code == 0
                assert said.startswith(
                    f"{LEARNED4} by {TOR4}\n  {TOR4} from {TOR4}: used\n    AS path {TOR_ASN},"
                )
                nobody = (1, "192.0.2.0/24: no peer announces it\n")
                assert await bgp(place, "explain", "192.0.2.0/24") == nobody
                code, said = await bgp(place, "explain", "everything")
                assert code == 1
                assert "'everything' is neither a CIDR nor an address" in said
                rack.tor.birdc("disable", "node4")
                await until(lambda: not all(peer.established for peer in node.speaker.peers()))
                code, said = await bgp(place, "peers")
                assert code == 1
                assert "down" in said
            finally:
                await server.stop()


async def nothing() -> None:
    pass


async def test_nothing_is_announced_before_the_agent_says_so(rack: Rack) -> None:
    async with agent(rack.run_dir) as node:
        await until(node.up)
        await asyncio.wait_for(node.speaker.wait_in_sync(), 60)
        assert rack.tor.routes("node4") == rack.tor.routes("node6") == set()


async def test_agent_killed_and_back_is_not_seen_by_the_tor(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SETTLE", 1.0)
    async with agent(rack.run_dir, announce={V4, V6, "10.244.9.0/24"}):
        await until(lambda: len(rack.tor.routes("node4")) == 2 and len(rack.tor.routes("node6")) == 1)
    before, withdrawn = rack.table(), rack.withdrawals()
    async with agent(rack.run_dir, announce=None) as node:
        await until(node.up)
        await asyncio.wait_for(node.speaker.wait_in_sync(), 60)
        # The IPv6 next hop cannot be read back from ExaBGP: the peer is asked to repeat it.
        await until(lambda: dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)})
        node.speaker.announce({V4, V6, "10.244.9.0/24"})
        assert await node.speaker.delivered(60)
        assert (rack.table(), rack.withdrawals()) == (before, withdrawn)
    # What the next life does not want goes, and only that.
    async with agent(rack.run_dir, announce={V4, V6}):
        await until(rack.announced)
        assert rack.withdrawals() == withdrawn + 1


@pytest.mark.parametrize("how", ["exabgp killed", "sidecar killed", "sidecar restarted"])
async def test_exabgp_gone_and_back_keeps_routes_by_graceful_restart(rack: Rack, how: str) -> None:
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: rack.announced() and len(node.speaker.routes()) == 2)
        before, withdrawn, node.changes[:] = rack.table(), rack.withdrawals(), []
        old = rack.sidecar.exabgp()
        if how == "exabgp killed":
            os.kill(old, signal.SIGKILL)
        elif how == "sidecar killed":
            rack.sidecar.kill()
            await until(lambda: not alive(old))
            rack.sidecar.start()
        else:
            rack.sidecar.stop()
            rack.sidecar.start()
        await until(lambda: not node.up())
        assert rack.tor.routes("node4") | rack.tor.routes("node6") != set()
        await until(node.up)
        assert rack.sidecar.exabgp() not in (0, old)
        # BIRD marks kept routes as stale ("s") until end-of-RIB.
        await until(lambda: "s)" not in rack.table().shown and rack.announced())
        assert (rack.table(), rack.withdrawals()) == (before, withdrawn)
        assert node.changes == [], "the kernel's routes would have flapped"


async def test_tor_restarting_gracefully_keeps_its_routes_here(rack: Rack) -> None:
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: rack.announced() and len(node.speaker.routes()) == 2)
        node.changes.clear()
        rack.tor.stop(kill=True)
        await until(lambda: not any(peer.established for peer in node.speaker.peers()))
        assert len(node.speaker.routes()) == 2
        rack.tor.start()
        await until(lambda: node.up() and rack.announced())
        await until(lambda: dict(node.speaker.routes()) == {LEARNED4: (TOR4,), LEARNED6: (TOR6,)})


async def test_tor_without_graceful_restart_loses_its_routes_at_once(rack: Rack) -> None:
    rack.tor.write(bird_config().replace("graceful restart on", "graceful restart off"))
    rack.tor.birdc("configure")
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: rack.announced() and len(node.speaker.routes()) == 2)
        rack.tor.stop(kill=True)
        await until(lambda: node.speaker.routes() == {})


async def test_peer_added_and_removed_without_touching_the_other(
    rack: Rack, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    second_netns = make_netns("tor2")
    link(second_netns, 1)
    second = Bird(second_netns, rack.folder / "tor2", bird_config(net=10, asn=65100))
    first_only = config()
    both = config(
        {"peerIP": TOR4, "asNumber": TOR_ASN},
        {"peerIP": TOR6, "asNumber": TOR_ASN},
        {"peerIP": "10.10.0.2", "asNumber": 65100},
    )
    with second:
        async with agent(rack.run_dir, first_only, announce={V4, V6}) as node:
            await until(rack.announced)
            before = rack.table()
            since = rack.tor.since("node4")
            node.speaker.set_config(both)
            await until(lambda: second.routes("node4") == {V4})
            # The same prefix from two racks is one ECMP route.
            await until(lambda: node.speaker.routes().get(LEARNED4) == ("10.10.0.2", TOR4))
            node.speaker.set_config(first_only)
            # Withdrawn, not kept as stale by graceful restart.
            await until(lambda: second.routes("node4") == set())
            await until(lambda: not second.established("node4"))
            assert node.speaker.routes()[LEARNED4] == (TOR4,)
            node.speaker.set_config(both)
            await until(lambda: second.routes("node4") == {V4})
            assert (rack.table(), rack.tor.since("node4")) == (before, since)


async def test_a_change_that_takes_its_time_is_no_complaint(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written once the peer that leaves has been told; only from then on ExaBGP can be late."""
    monkeypatch.setattr(speaker, "_TICK", 0.02)
    monkeypatch.setattr(speaker, "_NOT_IN_EFFECT", 5.0)
    with structlog.testing.capture_logs() as said:
        async with agent(rack.run_dir, announce={V4, V6}) as node:
            await until(rack.announced)
            await asyncio.sleep(speaker._NOT_IN_EFFECT)
            node.speaker.set_config(config({"peerIP": TOR4, "asNumber": TOR_ASN}))
            await until(lambda: not rack.tor.established("node6"))
            await until(lambda: node.speaker._control.in_effect)
            # Nor is what ExaBGP is not told of at all.
            await asyncio.sleep(speaker._NOT_IN_EFFECT)
            node.speaker.set_config(config({"peerIP": TOR4, "asNumber": TOR_ASN, "numAllowedLocalASNumbers": 1}))
            await until(lambda: node.speaker._control.in_effect)
    assert [line["event"] for line in said if line["event"].startswith("ExaBGP does not have")] == []


async def test_bad_configuration_never_replaces_a_good_one(rack: Rack) -> None:
    async with agent(rack.run_dir, announce={V4, V6}):
        await until(rack.announced)
    good, exabgp = (rack.run_dir / RUNNING).read_text(), rack.sidecar.exabgp()
    before = rack.table()
    (rack.run_dir / CONFIG).write_text("neighbor 10.9.0.2 { local-as what; }\n")
    await until(lambda: "configuration refused" in rack.sidecar.log)
    assert (rack.run_dir / RUNNING).read_text() == good
    # Nor is the old one lost by a restart, and the next good one is taken.
    rack.sidecar.stop()
    rack.sidecar.start()
    await until(lambda: rack.sidecar.exabgp() not in (0, exabgp))
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(node.up)
        await until(rack.announced)
        assert rack.table() == before


async def test_reload_that_exabgp_drops_is_asked_for_again(rack: Rack) -> None:
    """While a route waits for a peer that is down, ExaBGP drops every reload, and does not say so."""
    four, six = {"peerIP": TOR4, "asNumber": TOR_ASN}, {"peerIP": TOR6, "asNumber": TOR_ASN}
    dead = {"peerIP": "10.9.0.77", "asNumber": 65077}
    async with agent(rack.run_dir, config(four, dead), announce={V4, V6}):
        await until(lambda: rack.tor.routes("node4") == {V4})
        before, exabgp = rack.tor.written("node4"), rack.sidecar.exabgp()
    with socket.socket(socket.AF_UNIX) as bridge:
        bridge.settimeout(60)
        bridge.connect(str(rack.run_dir / SOCKET))
        bridge.sendall(b"neighbor 10.9.0.77 announce attributes next-hop self nlri 10.244.1.0/24\n")
        with bridge.makefile() as answers:
            assert "done\n" in iter(answers.readline, "")
    async with agent(rack.run_dir, config(four, six, dead), announce={V4, V6}):
        await until(rack.announced)
    assert rack.sidecar.exabgp() == exabgp
    assert rack.tor.written("node4") == before


async def test_md5_password_and_ttl_security(rack: Rack) -> None:
    password = "s3cret{};#"
    rack.tor.write(bird_config(peer4=f'password "{password}"; ttl security on;'))
    rack.tor.birdc("configure")

    def refused() -> int:
        names, values = rack.tor_netns.run("grep", "^TcpExt", "/proc/net/netstat").splitlines()
        return int(values.split()[names.split().index("TCPMD5Failure")])

    peer = {"peerIP": TOR4, "asNumber": TOR_ASN, "ttlSecurity": 1}
    async with agent(rack.run_dir, config(peer | {"password": "wrong"}), announce={V4}) as node:
        await until(refused)
        assert not node.up()
        assert rack.tor.routes("node4") == set()
        node.speaker.set_config(config(peer | {"password": password}))
        await until(lambda: rack.tor.routes("node4") == {V4} and LEARNED4 in node.speaker.routes())
    assert password not in rack.sidecar.log


async def test_other_listen_port_needs_no_other_session(rack: Rack) -> None:
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(rack.announced)
        node.speaker.set_config(config(listenPort=1790))
        await until(lambda: ":1790 " in run("ss", "-Hltn"))
        await until(lambda: node.up() and rack.announced())


MANY = 3000
"""Seconds for many of something, which take less than one on an idle machine."""


async def test_thousands_of_routes(rack: Rack) -> None:
    many = {f"10.{128 + i // 256}.{i % 256}.0/24" for i in range(MANY)}
    rack.tor.write(bird_config("".join(f"route {prefix} blackhole;\n" for prefix in sorted(many))))
    rack.tor.birdc("configure")
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: len(node.speaker.routes()) == MANY + 2, TIME)
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        # Read back from ExaBGP, not from the peer.
        await until(lambda: len(node.speaker.routes()) == MANY + 2, TIME)
        mine = {f"10.{64 + i // 256}.{i % 256}.0/24" for i in range(MANY)}
        node.speaker.announce(mine | {V4, V6})
        await until(lambda: rack.tor.count("node4") == MANY + 1, TIME)
        node.speaker.announce({V4, V6})
        assert await node.speaker.delivered(TIME)
        assert rack.tor.routes("node4") == {V4}


async def test_agent_stopped_in_the_middle_of_a_burst(rack: Rack) -> None:
    """Half-sent commands and unread answers of one life do not confuse the next."""
    mine = {f"10.{64 + i // 256}.{i % 256}.0/24" for i in range(3000)}
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(rack.announced)
        node.speaker.announce(mine | {V4, V6})
        await until(lambda: rack.tor.count("node4") > 100)
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(rack.announced)
        assert await node.speaker.delivered(60)
        assert rack.announced()
