"""How punctual BFD is on a busy host, and so the fastest interval that never flaps; and what it is good for.

A session of felix-py's BFD process with a BIRD 2, beside one between two BIRDs: once with the priority of any
other process, as in an installation's pod, and once with the real-time priority that it takes where it may. The
host is as it is ("idle"), or has an endless loop for each core besides ("busy"). The packets are seen where they
arrive, with the kernel's time stamps: the node's longest silence at an interval of 20 ms (or until the session
went down), and the fastest interval, three lost packets being a failure, at which no end took the session down.

Then a router that falls silent while its link stays up: from its last packet until the node has no route by it,
with BGP and BFD at 300 ms x 3, by felix-py's speaker and sidecar, and by BIRD.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness import Row, duration, show
from bench.rack import beside, rack
from bgp.bfd import packet
from bgp.bfd.links import PORT
from bgp.bfd.packet import State
from bgp.model import Peer
from bgp.resources import Bfd
from felix_py import log
from tests.support.bfd import Process, with_bfd
from tests.support.bgp import NODE4, NODE_ASN, TOR4, TOR_ASN, Sidecar, agent, config
from tests.support.bird import Bird
from tests.support.isolate import Here, NetworkNamespace
from tests.support.waiting import eventually, until

_INTERVALS = (10, 20, 50, 100, 200)
"""Milliseconds."""

_SILENCE_AT = 20
_MULTIPLIER = 3
_NOT_PERMITTED = ("setpriv", "--bounding-set=-sys_nice")
_ETH_P_ALL, _ETH_P_IP, _SO_TIMESTAMPNS = 0x0003, 0x0800, 35
_UDP_DESTINATION, _PAYLOAD = 22, 28  # in an IPv4 packet without options


@dataclass
class _Seen:
    """Of one session: the longest time between two packets of the node, and whether an end took it down."""

    silence: float = 0.0
    flapped: bool = False
    _last: dict[str, float] = field(default_factory=dict)
    _up: set[str] = field(default_factory=set)

    def take(self, sender: str, at: float, state: State) -> None:
        """Note one packet."""
        if state is State.UP:
            self._up.add(sender)
        elif sender in self._up:
            self.flapped = True
        if len(self._up) == 2 and sender == NODE4 and not self.flapped:
            self.silence = max(self.silence, at - self._last.get(sender, at))
        self._last[sender] = at


def main(quick: bool) -> None:
    """Each way at each interval, on a host as it is and on a busy one."""
    intervals, seconds = ((20, 100), 2.0) if quick else (_INTERVALS, 10.0)
    ways: dict[str, Callable[[Path, int, ExitStack], None]] = {
        "BIRD": _bird,
        "felix-py, real-time": _ours,
        "felix-py": lambda folder, interval, stack: _ours(folder, interval, stack, _NOT_PERMITTED),
    }
    for load, loops in (("idle", 0), ("busy", os.cpu_count() or 1)):
        silence = {way: Row(way, base=way == "BIRD") for way in ways}
        fastest = {way: Row(way, base=way == "BIRD") for way in ways}
        with _busy(loops):
            for way, start in ways.items():
                seen = {interval: _watch(start, interval, seconds) for interval in intervals}
                silence[way].values.append(seen[_SILENCE_AT].silence)
                held = [interval for interval in intervals if not seen[interval].flapped]
                fastest[way].values.append((held[0] if held else intervals[-1] * 10) / 1e3)
        show(f"bfd: longest silence at {_SILENCE_AT} ms, {load} host", list(silence.values()), duration)
        show(f"bfd: fastest interval x {_MULTIPLIER} that held, {load} host", list(fastest.values()), duration)

    times = 1 if quick else 5
    gone = [Row("BIRD", base=True), Row("felix-py")]
    for _ in range(times):
        gone[0].values.append(_in_rack(_failover_of_bird))
        gone[1].values.append(_in_rack(_failover_of_felix))
    show("bfd: from a silent failure until the routes are gone, 300 ms x 3", gone, duration)


def _in_rack(measure: Callable[[Path, NetworkNamespace, Bird], float]) -> float:
    with rack(_bgp_config(TOR4, TOR_ASN, NODE4, NODE_ASN)) as (folder, bird, tor):
        return measure(folder, tor, bird)


def _bgp_config(router: str, asn: int, neighbor: str, neighbor_asn: int) -> str:
    return f"""
    router id {router};
    protocol device {{ }}
    protocol bfd {{ interface "*" {{ interval 300 ms; multiplier 3; }}; }}
    protocol static {{ ipv4; route 10.244.{asn % 100}.0/24 blackhole; }}
    protocol bgp peer {{
      local as {asn}; neighbor {neighbor} as {neighbor_asn}; bfd on; connect delay time 1;
      ipv4 {{ import all; export where source = RTS_STATIC; }};
    }}
    """


def _fall_silent(tor: NetworkNamespace) -> float:
    tor.run("iptables", "-w", "-I", "OUTPUT", "-j", "DROP")
    return time.perf_counter()


def _failover_of_bird(folder: Path, tor: NetworkNamespace, _bird: Bird) -> float:
    node = Bird(Here(), folder / "node", _bgp_config(NODE4, NODE_ASN, TOR4, TOR_ASN))
    node.start()
    try:
        eventually(lambda: node.routes("peer") and " Up " in node.birdc("show", "bfd", "sessions"), 60)
        since = _fall_silent(tor)
        eventually(lambda: not node.routes("peer"), 60, pause=0.005)
        return time.perf_counter() - since
    finally:
        node.stop()


def _failover_of_felix(folder: Path, tor: NetworkNamespace, _bird: Bird) -> float:
    log.configure(log.LogLevel.ERROR, log.LogFormat.TEXT)  # that it fails is no news here

    async def measure() -> float:
        wanted = with_bfd(config({"peerIP": TOR4, "asNumber": TOR_ASN}), Bfd())
        async with agent(sidecar.run_dir, wanted, announce={"10.244.1.0/24"}) as node:
            await until(lambda: node.speaker.routes() and node.speaker.peers()[0].bfd == "UP")
            since = _fall_silent(tor)
            await until(lambda: not node.speaker.routes(), pause=0.002)
            return time.perf_counter() - since

    sidecar = Sidecar(folder / "run")
    sidecar.start()
    try:
        return asyncio.run(measure())
    finally:
        sidecar.stop()


@contextmanager
def _busy(loops: int) -> Iterator[None]:
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _bird_config(router: str, interval: int, neighbor: str) -> str:
    return f"""
    router id {router};
    protocol device {{ }}
    protocol bfd {{
      interface "*" {{ interval {interval} ms; multiplier {_MULTIPLIER}; }};
      neighbor {neighbor} local {router};
    }}
    """


def _bird(folder: Path, interval: int, stack: ExitStack) -> None:
    bird = Bird(Here(), folder / "node", _bird_config(NODE4, interval, TOR4))
    stack.callback(bird.stop)
    bird.start()


def _ours(folder: Path, interval: int, stack: ExitStack, before: Sequence[str] = ()) -> None:
    process = stack.enter_context(Process(folder / "run", before))
    bfd = Bfd(interval=interval, detect_multiplier=_MULTIPLIER)
    process.want(Peer(address=TOR4, source_address=NODE4, asn=65000, local_asn=65001, bfd=bfd))


def _watch(start: Callable[[Path, int, ExitStack], None], interval: int, seconds: float) -> _Seen:
    """A session for so many seconds after it has come up."""
    with beside() as (folder, tor), ExitStack() as stack:
        with tor.enter():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        stack.callback(wire.close)
        wire.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        wire.settimeout(1.0)
        bird = Bird(tor, folder / "tor", _bird_config(TOR4, interval, NODE4))
        stack.callback(bird.stop)
        bird.start()
        start(folder, interval, stack)
        eventually(lambda: " Up " in bird.birdc("show", "bfd", "sessions"), 60)
        # The first packets still have the slow interval.
        settled, seen = time.time() + 2.0, _Seen()
        while _read(wire, seen, settled) < settled + seconds:
            pass
        return seen


def _read(wire: socket.socket, seen: _Seen, since: float) -> float:
    """Take the next packet, if it came after ``since``; returns its time."""
    try:
        data, ancillary, _, sender = wire.recvmsg(256, 64)
    except TimeoutError:
        return time.time()
    whole, nanoseconds = struct.unpack("@ll", ancillary[0][2])
    at: float = whole + nanoseconds / 1e9
    port = int.from_bytes(data[_UDP_DESTINATION : _UDP_DESTINATION + 2], "big")
    if at >= since and sender[1] == _ETH_P_IP and port == PORT:
        seen.take(socket.inet_ntoa(data[12:16]), at, packet.decode(data[_PAYLOAD:]).state)
    return at
