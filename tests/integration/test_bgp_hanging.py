"""An ExaBGP that hangs is started anew, and the routers keep the routes meanwhile; one that works is not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgp.render import render
from bgp.sidecar import CONFIG, SOCKET
from tests.support.bgp import TOR_ASN, Sidecar, agent, config
from tests.support.bgp_rack import TIME, V4, V6, Rack
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

STANDS = 5.0
PEERS, PREFIXES, AT_ONCE = 200, 10_000, 500


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    with Sidecar(tmp_path / "run", limits={"STANDS": STANDS}) as found:
        yield found


async def test_an_exabgp_that_is_stopped(rack: Rack) -> None:
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: node.up() and rack.announced() and len(node.speaker.routes()) == 2, TIME)
        withdrawn, exabgp = rack.withdrawals(), rack.sidecar.exabgp()
        os.kill(exabgp, signal.SIGSTOP)
        await until(lambda: rack.sidecar.exabgp() not in (0, exabgp), TIME)
        await until(lambda: node.up() and len(node.speaker.routes()) == 2, TIME)
        assert (rack.announced(), rack.withdrawals()) == (True, withdrawn)
        assert not any(change for change in node.changes if () in change.values())
    assert "ExaBGP hangs" in rack.sidecar.log


async def test_a_bridge_that_is_stopped(rack: Rack) -> None:
    """It is all that is started anew: sessions stay."""
    async with agent(rack.run_dir, announce={V4, V6}) as node:
        await until(lambda: node.up() and rack.announced() and len(node.speaker.routes()) == 2, TIME)
        since, (_, exabgp, bridge) = rack.tor.since("node4"), rack.sidecar.pids()
        os.kill(bridge, signal.SIGSTOP)
        await until(lambda: bridge not in rack.sidecar.pids(), TIME)
        await until(lambda: node.up() and node.speaker.hindrance == "", TIME)
        assert (rack.sidecar.exabgp(), rack.tor.since("node4")) == (exabgp, since)
        assert rack.announced()


def test_an_exabgp_whose_loop_does_not_turn_any_more(tmp_path: Path) -> None:
    """It computes for ever, in the midst of one turn."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'server' in sys.orig_argv:\n"
        "    from exabgp.reactor.loop import Reactor\n"
        "    Reactor.reload = lambda reactor: [None for _ in iter(int, 1)]\n"
    )
    sidecar = Sidecar(tmp_path / "run", limits={"LOOPS": STANDS})
    (sidecar.run_dir / CONFIG).write_text(render(config(), ()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(broken))
        with sidecar:
            exabgp = eventually(sidecar.exabgp, TIME)
            eventually(lambda: sidecar.exabgp() not in (0, exabgp), TIME)
    assert "ExaBGP hangs" in sidecar.log


def test_an_exabgp_that_has_much_to_do_is_left_alone(sidecar: Sidecar) -> None:
    peers = [
        {"peerIP": f"10.9.1.{n}", "asNumber": TOR_ASN, "sourceAddress": "10.9.1.254"} for n in range(1, PEERS + 1)
    ]
    whole = config(*peers)
    new = sidecar.run_dir / "new"
    new.write_text(render(whole, whole.peers))
    new.rename(sidecar.run_dir / CONFIG)
    exabgp = eventually(sidecar.exabgp, TIME)
    eventually((sidecar.run_dir / SOCKET).exists, TIME)
    prefixes = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(PREFIXES)]
    lines = (
        f"announce attributes next-hop 10.9.1.254 nlri {' '.join(prefixes[at : at + AT_ONCE])}\n"
        for at in range(0, PREFIXES, AT_ONCE)
    )
    with socket.socket(socket.AF_UNIX) as bridge:
        bridge.connect(str(sidecar.run_dir / SOCKET))
        bridge.sendall("".join(lines).encode())
        before = processor_seconds(exabgp)
        eventually(lambda: processor_seconds(exabgp) > before + 3 * STANDS, TIME)
        bridge.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            assert bridge.recv(65536).count(b"done\n") < PREFIXES // AT_ONCE, "it has had too little to do"
    assert sidecar.exabgp() == exabgp
    assert "hangs" not in sidecar.log


def processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
