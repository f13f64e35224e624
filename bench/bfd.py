"""How punctual BFD is on a busy host, and so the fastest interval that never flaps.

A session of felix-py's BFD process with a BIRD 2, beside one between two BIRDs: once with the priority of any
other process, as in an installation's pod, and once with the real-time priority that it takes where it may. The
host is as it is ("idle"), or has an endless loop for each core besides ("busy"). The packets are seen where they
arrive, with the kernel's time stamps: the node's longest silence at an interval of 20 ms (or until the session
went down), and the fastest interval, three lost packets being a failure, at which no end took the session down.
"""

from __future__ import annotations

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
from tempfile import TemporaryDirectory

from bench.harness import Row, duration, show
from bgp.bfd import packet
from bgp.bfd.links import PORT
from bgp.bfd.packet import State
from bgp.model import Peer
from bgp.resources import Bfd
from tests.support.bfd import Process
from tests.support.bgp import NODE4, TOR4, link
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, new_netns
from tests.support.waiting import eventually

_INTERVALS = (10, 20, 50, 100, 200)
"""Milliseconds."""

_SILENCE_AT = 20
_MULTIPLIER = 3
_NOT_PERMITTED = ("setpriv", "--bounding-set=-sys_nice")
_ETH_P_ALL, _ETH_P_IP, _SO_TIMESTAMPNS = 0x0003, 0x0800, 35
_UDP_DESTINATION, _PAYLOAD = 22, 28  # in an IPv4 packet without options


class _Here(NetworkNamespace):
    """The current network namespace, for BIRD."""

    def __init__(self) -> None:
        self.name = ""

    def popen(self, argv: Sequence[str], **options: object) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(argv, text=True, **options)  # type: ignore[call-overload,no-any-return]


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
    bird = Bird(_Here(), folder / "node", _bird_config(NODE4, interval, TOR4))
    stack.callback(bird.stop)
    bird.start()


def _ours(folder: Path, interval: int, stack: ExitStack, before: Sequence[str] = ()) -> None:
    process = stack.enter_context(Process(folder / "run", before))
    bfd = Bfd(interval=interval, detect_multiplier=_MULTIPLIER)
    process.want(Peer(address=TOR4, source_address=NODE4, asn=65000, local_asn=65001, bfd=bfd))


def _watch(start: Callable[[Path, int, ExitStack], None], interval: int, seconds: float) -> _Seen:
    """A session for so many seconds after it has come up."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(new_netns())
        tor = NetworkNamespace("tor")
        stack.callback(tor.close)
        link(tor)
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
