"""The agent starts on a kernel that holds what no policy asks for any more: once it says that it is ready, none
of that is in force, whatever BGP does. Only learned routes wait for their peers, and not for ever."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bgp.sidecar import SOCKET
from felix_py.desired.names import SetNames
from felix_py.records import Backend
from policy.model import Family, Packet, Protocol
from tests.support import kernel_state
from tests.support.bgp import Sidecar
from tests.support.fake_exabgp import FakeExaBGP
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import GATEWAY, NODE, LiveNode
from tests.support.streams import Streams
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

LEARNED = {Family.V4: "10.2.0.0/24", Family.V6: "fd00:2::/64"}
PATIENCE = 8
"""Seconds of ``maxRestartTime``."""

PEERS = {
    "asNumber": 65001,
    "routerID": NODE[Family.V4],
    "peers": [
        {"peerIP": gateway, "asNumber": 65000, "maxRestartTime": f"{PATIENCE}s"} for gateway in GATEWAY.values()
    ],
}


@contextmanager
def bridge(folder: Path, answer: Callable[[bytes], bytes]) -> Iterator[None]:
    """Something that listens where the sidecar would."""
    folder.mkdir(parents=True, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / SOCKET))
    listening.listen(4)

    def converse() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(answer(data))

    thread = threading.Thread(target=converse, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


@contextmanager
def silent_sidecar(folder: Path) -> Iterator[None]:
    """It takes every command and answers none."""
    with bridge(folder, lambda _data: b""):
        yield


@contextmanager
def peer_down(folder: Path) -> Iterator[None]:
    """The real sidecar and ExaBGP; nobody speaks BGP at the peers' addresses."""
    with Sidecar(folder):
        yield


@contextmanager
def deaf_to_refresh(folder: Path) -> Iterator[None]:
    """Sessions are up, but the peer does not repeat a route of which ExaBGP knows no next hop that is of use."""
    exabgp = FakeExaBGP()
    exabgp.deaf_to_refresh = True
    for family in Family:
        exabgp.add(GATEWAY[family], NODE[family], 65000, 65001)
        exabgp.up(GATEWAY[family])
    exabgp.announce(GATEWAY[Family.V6], "fd00:7::/64", ("fe80::9", (65000,), 0))
    exabgp.connect()

    def answer(data: bytes) -> bytes:
        exabgp.write(data)
        return exabgp.read()

    with bridge(folder, answer):
        yield


@pytest.fixture(params=list(Backend), ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> Iterator[LiveNode]:
    with LiveNode(tmp_path, Backend(request.param), make_netns) as made:
        yield made


def learned(family: Family) -> list[str]:
    return [line for line in kernel_state.routes(family) if LEARNED[family] in line]


@pytest.mark.parametrize(
    ("node", "obstacle"),
    [
        (Backend.LEGACY, silent_sidecar),
        *((backend, peer_down) for backend in Backend),
        (Backend.NFT, deaf_to_refresh),
        pytest.param(Backend.NFT, silent_sidecar, marks=pytest.mark.heavy),
        pytest.param(Backend.LEGACY, deaf_to_refresh, marks=pytest.mark.heavy),
    ],
    ids=lambda value: str(value) if isinstance(value, Backend) else value.__name__,
    indirect=["node"],
)
def test_ready_means_that_nothing_stale_is_in_force(
    node: LiveNode, obstacle: Callable[[Path], AbstractContextManager[None]]
) -> None:
    node.allow("db", {"app": "db"}, {"app": "web"})
    node.allow("closed", {"app": "api"})
    node.start()
    node.ready()
    for name in ("web", "db", "api"):
        node.add_pod(name, app=name)
    node.kill()
    for family, prefix in LEARNED.items():  # as its last life has left them; an agent that runs would remove them
        run("ip", f"-{int(family)}", "route", "add", prefix, "via", GATEWAY[family], "proto", "89")

    (node.folder / "bgp.yaml").write_text(json.dumps(PEERS))
    node.relabel("web", app="other")
    node.forbid_nothing("closed")
    with obstacle(node.folder / "run/bgp"), Streams() as streams:
        # The stale sets still let it begin.
        begun = [node.stream(streams, family, "web", "db", 80) for family in Family]
        eventually(lambda: all(stream.progress > 20 for stream in begun))
        node.start("--bgp-config", str(node.folder / "bgp.yaml"))
        node.ready()
        ready = time.monotonic()

        ends = {name: list(node.addresses[name].values()) for name in node.places}
        tries = [
            (node.places["web"], Packet(source, target, Protocol.TCP, 81))
            for server in ("db", "api")
            for source, target in zip(ends["web"], ends[server], strict=True)
        ]
        with serve([(node.places[n], a, Protocol.TCP, 81) for n in ("db", "api") for a in ends[n]]):
            answered = {packet.destination for packet in attempt(tries, 2)}
        assert answered == set(ends["api"])
        web = set(ends["web"])
        # Sets of policies hold addresses alone; all others hold more, or are maps.
        held = {name for name, members in kernel_state.sets().items() if web & set(members)}
        assert held <= {SetNames.of(family).local for family in Family}
        saved = [kernel_state.saved(family, node.backend or Backend.NFT) for family in Family]
        assert not [line for text in saved for line in text.splitlines() if "shop/closed" in line]
        # Nor do connections that began meanwhile go on.
        eventually(lambda: node.metric("felix_py_flows_revoked_total") >= len(begun))
        ended = time.monotonic()
        if time.monotonic() < ready + PATIENCE - 1:
            assert all(map(learned, Family)), "no peer has had the time to tell its routes"
        eventually(lambda: not any(map(learned, Family)), 60)
        assert time.monotonic() > ready + PATIENCE - 4
        assert [stream.name for stream in begun if stream.heard_after(ended)] == []
