"""A node with the real sidecar and the agent's speaker, linked to a router's namespace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import structlog

from bgp.model import SpeakerConfig, parse_bgp_config
from felix_py.speaker import Speaker
from tests.support.isolate import NetworkNamespace, run
from tests.support.started import Started
from tests.support.waiting import eventually, running

NODE_ASN = 65001
TOR_ASN = 65000
NODE4, TOR4 = "10.9.0.1", "10.9.0.2"
NODE6, TOR6 = "fd09::1", "fd09::2"
ROOT = Path(__file__).parents[2]


def link(router: NetworkNamespace, index: int = 0) -> None:
    """A veth from the current namespace to a router's, with addresses 10.(9+index).0.1 and .2, fd0(9+index)::."""
    here, there, net = f"tor{index}", "node", 9 + index
    run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", router.name)
    for command, device, host in ((run, here, 1), (router.run, there, 2)):
        command("sysctl", "-qw", f"net.ipv6.conf.{device}.accept_dad=0")
        command("ip", "address", "add", f"10.{net}.0.{host}/24", "dev", device)
        command("ip", "address", "add", f"fd{net:02}::{host}/64", "dev", device)
        command("ip", "link", "set", device, "up")
    eventually(lambda: "tentative" not in run("ip", "address", "show", "dev", here))
    eventually(lambda: "LOWER_UP" in router.run("ip", "link", "show", "dev", there))


def unnumbered(router: NetworkNamespace) -> None:
    """Leave nothing but link-local addresses on the link: fe80::1 on our side, fe80::2 on the router's."""
    for command, device, host in ((run, "tor0", 1), (router.run, "node", 2)):
        command("ip", "address", "flush", "dev", device)
        command("ip", "address", "add", f"fe80::{host}/64", "dev", device, "nodad")


def config(*peers: Mapping[str, object], **speaker: object) -> SpeakerConfig:
    """A node's configuration; without peers, the ToR on the first link in both families."""
    both = ({"peerIP": TOR4, "asNumber": TOR_ASN}, {"peerIP": TOR6, "asNumber": TOR_ASN})
    return parse_bgp_config({"asNumber": NODE_ASN, "routerID": NODE4, "peers": list(peers or both), **speaker})


class Sidecar(Started):
    """The real sidecar as a process of its own."""

    def __init__(
        self, run_dir: Path, namespace: NetworkNamespace | None = None, limits: Mapping[str, float] | None = None
    ) -> None:
        """``namespace``: where it runs, if not in the current one. ``limits``: other ones of bgp.standstill."""
        self._limits = limits or {}
        self._namespace = namespace
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        """Everything any incarnation has logged."""
        return (self.run_dir.parent / "sidecar.log").read_text()

    def start(self) -> None:
        """Start it; ExaBGP follows once there is a configuration."""
        argv = [sys.executable, "-m", "bgp.sidecar", "--run-dir", str(self.run_dir)]
        if self._limits:
            others = "".join(f"standstill.{name} = {value}; " for name, value in self._limits.items())
            argv[1:3] = ["-c", f"from bgp import sidecar, standstill; {others}sidecar.main()"]
        place = self._namespace.enter() if self._namespace else contextlib.nullcontext()
        with (self.run_dir.parent / "sidecar.log").open("a") as log, place:
            self._process = subprocess.Popen(argv, cwd=ROOT, stderr=log)

    def child(self, what: str) -> int:
        """Process id of its child that has a word on its command line; 0: none at the moment."""
        assert self._process is not None
        word = f"\0{what}\0".encode()
        for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        return 0

    def exabgp(self) -> int:
        """Process id of its ExaBGP; 0: none at the moment."""
        return self.child("server")

    def pids(self) -> list[int]:
        """Its own process, ExaBGP, and the bridge."""
        assert self._process is not None
        exabgp = self.exabgp()
        bridge = Path(f"/proc/{exabgp}/task/{exabgp}/children").read_text().split()
        return [self._process.pid, exabgp, *map(int, bridge)]

    def kill(self) -> None:
        """SIGKILL, as the kernel's memory killer would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        """SIGTERM, as a rollout would."""
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(10) is not None


class Agent:
    """One life of the agent's BGP side."""

    def __init__(self, run_dir: Path) -> None:
        self.changes: list[Mapping[str, tuple[str, ...]]] = []
        self.speaker = Speaker(run_dir, self.changes.append, structlog.get_logger())
        self.speaker.set_filter(within=["10.0.0.0/8", "fd00::/8"], never=["10.244.1.0/24"])

    def up(self) -> bool:
        """All peers are Established."""
        peers = self.speaker.peers()
        return bool(peers) and all(peer.established for peer in peers)


@contextlib.asynccontextmanager
async def agent(
    run_dir: Path, wanted: SpeakerConfig | None = None, announce: set[str] | None = None
) -> AsyncIterator[Agent]:
    """The agent alive; at the end it dies without a word, as a killed process does."""
    alive = Agent(run_dir)
    alive.speaker.set_config(wanted or config())
    if announce is not None:
        alive.speaker.announce(announce)
    async with running(alive.speaker.run()):
        yield alive


def alive(pid: int) -> bool:
    """Whether a process exists."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False
