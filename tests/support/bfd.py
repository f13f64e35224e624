"""BFD in tests: FRR's bfdd, packets of our own making, links that lose everything and say nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bgp.bfd import packet, settings
from bgp.bfd.packet import Packet, State
from bgp.bfd.settings import Report
from bgp.model import Peer, SpeakerConfig
from bgp.resources import Bfd
from tests.support.bgp import ROOT
from tests.support.isolate import NetworkNamespace
from tests.support.routers import daemon
from tests.support.waiting import eventually

FRR_BFDD = "/usr/lib/frr/bfdd"


def with_bfd(config: SpeakerConfig, bfd: Bfd | None) -> SpeakerConfig:
    """The same with BFD at each peer."""
    return replace(config, peers=tuple(replace(peer, bfd=bfd) for peer in config.peers))


def silence(
    namespace: NetworkNamespace, *, end: bool = False, chains: Sequence[str] = ("INPUT", "OUTPUT")
) -> None:
    """Lose all that comes or goes; links stay as they are. ``end``: lose nothing any more."""
    for tool in ("iptables", "ip6tables"):
        for chain in chains:
            namespace.run(tool, "-w", "-D" if end else "-I", chain, "-j", "DROP")


class Listener:
    """What the BFD process in a folder says."""

    def __init__(self, folder: Path) -> None:
        self._path = str(folder / settings.SOCKET)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setblocking(False)
        self._connected = False
        self._data = b""
        self.reports: list[Report] = []

    def last(self, peer: str) -> Report | None:
        """The latest report of a peer, if there was any."""
        self._connected = self._connected or self._socket.connect_ex(self._path) == 0
        try:
            while self._connected and (data := self._socket.recv(65536)):
                self._data += data
        except BlockingIOError:
            pass
        *lines, self._data = self._data.split(b"\n")
        for line in lines:
            report = settings.decode(line)
            assert report is not None, line
            self.reports.append(report)
        return next((report for report in reversed(self.reports) if report.peer == peer), None)

    def state(self, peer: str) -> str:
        """The latest state of a peer; empty: there is none."""
        report = self.last(peer)
        return report.state if report else ""

    def timers(self, peer: str) -> tuple[int, int]:
        """Intervals of sending and of detection as they are agreed on, in microseconds."""
        report = self.last(peer)
        return (report.transmit_interval, report.detection_time) if report else (0, 0)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


class Process:
    """The BFD process without its sidecar, in the current namespace; ``before``: a command that starts it."""

    def __init__(self, folder: Path, before: Sequence[str] = ()) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "bfd.log"
        argv = [*before, sys.executable, "-m", "bgp.bfd.speaker", str(folder)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text()

    def want(self, *peers: Peer) -> None:
        """Have the BFD sessions of these peers."""
        assert self.process.stdin is not None
        self.process.stdin.write(settings.lines(peers).encode() + b"\0")
        self.process.stdin.flush()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) in (0, -signal.SIGKILL), self.log


@contextmanager
def bfdd(namespace: NetworkNamespace, config: str) -> Iterator[BfdPeers]:
    """FRR's bfdd, without zebra. It becomes another user, who needs a folder."""
    if not os.path.exists(FRR_BFDD) or not shutil.which("vtysh"):
        pytest.skip("FRR is not installed")
    with tempfile.TemporaryDirectory(prefix="felix-py-bfdd-") as name:
        folder = Path(name)
        (folder / "bfdd.conf").write_text(config)
        shutil.chown(folder, "frr", "frr")
        argv = [FRR_BFDD, "-f", str(folder / "bfdd.conf"), "-i", str(folder / "pid"), "-z", str(folder / "zserv")]
        argv += ["--vty_socket", name, "--bfdctl", str(folder / "bfdd.sock"), "-P", "0"]
        with daemon(namespace, folder, *argv):
            peers = BfdPeers(folder)
            eventually(peers.all, 60)
            yield peers


class BfdPeers:
    """bfdd's answers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, *words: str) -> str:
        """Answer of one command, or of several that follow one another."""
        argv = ["vtysh", "--vty_socket", str(self._folder), "-d", "bfdd"]
        for word in words:
            argv += ["-c", word]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    def all(self) -> list[dict[str, object]]:
        """Its sessions."""
        answer = self.ask("show bfd peers json")
        found: list[dict[str, object]] = json.loads(answer) if answer.startswith("[") else []
        return found

    def states(self) -> set[str]:
        """``up``, ``down``, ``init`` or ``shutdown``, of all sessions together."""
        return {str(peer["status"]) for peer in self.all()}


def forged(source: str, destination: str, *, ttl: int = 255, **fields: object) -> None:
    """Send one packet from this namespace."""
    values: dict[str, object] = {
        "state": State.DOWN,
        "detect_multiplier": 3,
        "my_discriminator": 4711,
        "desired_min_tx": 1_000_000,
        "required_min_rx": 1_000_000,
    }
    data = packet.encode(Packet(**{**values, **fields}))  # type: ignore[arg-type]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        sending.bind((source, 0))
        sending.sendto(data, (destination, 3784))
