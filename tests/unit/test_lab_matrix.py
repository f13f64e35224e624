"""Which connections the matrix tries, what it expects of them, and how it tells."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from lab import matrix
from lab.matrix import Attempt, Cell, Kind, Party, Scene, attempts, measure
from lab.matrix_report import as_json, as_tables
from policy.model import Family, Namespace, NetworkPolicy, Pod, Protocol, Selector
from policy.oracle.evaluate import Snapshot

HERE = Path("/proc/thread-self/ns/net")


def party(name: str, address: str, kind: Kind = Kind.POD, ports: tuple[tuple[str, int], ...] = ()) -> Party:
    return Party(name, kind, HERE, {Family.V4: address}, ports)


WEB = party("shop/web", "10.0.0.1", ports=(("TCP", 80), ("UDP", 53)))
DNS = party("dev/dns", "10.0.1.1", ports=(("UDP", 53),))
MUTE = party("dev/mute", "10.0.1.2")
WORLD = party("world", "203.0.113.10", Kind.WORLD, (("TCP", 80), ("UDP", 53)))
NODE = party("node1", "172.30.1.1", Kind.NODE)
NODE2 = party("node2", "172.30.2.1", Kind.NODE)
EVERYONE = (WEB, DNS, MUTE, WORLD, NODE, NODE2)
DENY = NetworkPolicy("shop", "deny", Selector(), ingress=())
SNAPSHOT = Snapshot(
    [Namespace("shop"), Namespace("dev")],
    [
        Pod("shop", "web", node="node1", addresses=("10.0.0.1",)),
        Pod("dev", "dns", node="node1", addresses=("10.0.1.1",)),
        Pod("dev", "mute", node="node1", addresses=("10.0.1.2",)),
    ],
    [DENY],
)
SCENE = Scene(SNAPSHOT, EVERYONE)


def pairs(tries: list[Attempt]) -> set[tuple[str, str, tuple[str, int]]]:
    return {(attempt.source.name, attempt.destination.name, attempt.port) for attempt in tries}


def test_first_port_of_each_destination() -> None:
    found = pairs(attempts(EVERYONE))
    sources = {"shop/web", "dev/dns", "dev/mute", "world", "node1", "node2"}
    assert {(s, d, p) for s, d, p in found if d == "shop/web"} == {(s, "shop/web", ("TCP", 80)) for s in sources}
    assert {(s, d, p) for s, d, p in found if d == "dev/dns"} == {(s, "dev/dns", ("UDP", 53)) for s in sources}
    assert {(s, d, p) for s, d, p in found if d == "world"} == {
        (s, "world", ("TCP", 80)) for s in ("shop/web", "dev/dns", "dev/mute")
    }
    assert not [pair for pair in found if pair[1] in ("dev/mute", "node1")]


def test_first_port_of_a_protocol() -> None:
    ports = {(d, p) for _, d, p in pairs(attempts(EVERYONE, Protocol.UDP))}
    assert ports == {("shop/web", ("UDP", 53)), ("dev/dns", ("UDP", 53)), ("world", ("UDP", 53))}


def test_one_port_for_all() -> None:
    assert {p for _, _, p in pairs(attempts(EVERYONE, None, 8080))} == {("TCP", 8080)}
    assert {d for _, d, _ in pairs(attempts(EVERYONE, None, 8080))} == {
        "shop/web",
        "dev/dns",
        "dev/mute",
        "world",
    }
    assert {p for _, _, p in pairs(attempts(EVERYONE, Protocol.UDP, 8080))} == {("UDP", 8080)}


def test_a_node_reaches_its_own_pods_and_no_others_whatever_policy_says() -> None:
    allowed = {
        source.name: SCENE.expected(Attempt(source, WEB, Family.V4, ("TCP", 80))).allowed for source in EVERYONE
    }
    assert allowed == {
        "shop/web": True,
        "dev/dns": False,
        "dev/mute": False,
        "world": False,
        "node1": True,
        "node2": False,
    }


# --- real sockets on loopback ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here happens on loopback, without root."""

    @contextmanager
    def stay(_netns: Path) -> Iterator[None]:
        yield

    monkeypatch.setattr(matrix, "inside", stay)


LOOPBACK = Scene(
    Snapshot([], [Pod("shop", "web", addresses=("127.0.0.1",)), Pod("dev", "dns", addresses=("10.0.1.1",))], []),
    (),
)


def on_loopback(port: int, protocol: str, name: str = "shop/web") -> Attempt:
    return Attempt(party("dev/dns", "10.0.1.1"), party(name, "127.0.0.1"), Family.V4, (protocol, port))


async def result_of(attempt: Attempt) -> Cell:
    (cell,) = await measure(LOOPBACK, [attempt], timeout=0.2)
    return cell


async def test_a_name_that_answers_is_reached() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        attempt = on_loopback(server.getsockname()[1], "TCP")
        measuring = asyncio.create_task(measure(LOOPBACK, [attempt], timeout=2))
        connection, _ = await loop.sock_accept(server)
        with connection:
            await loop.sock_sendall(connection, b"shop/web\n")
            (cell,) = await measuring
    assert (cell.reached, cell.detail) == (True, "shop/web")


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
async def test_a_port_that_refuses_was_reached(protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    cell = await result_of(on_loopback(port, protocol))
    assert (cell.reached, cell.detail) == (True, "refused")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_silence_is_not_reached(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as silent:
        silent.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            silent.listen()
        cell = await result_of(
            on_loopback(silent.getsockname()[1], "TCP" if kind == socket.SOCK_STREAM else "UDP")
        )
    assert (cell.reached, cell.detail) == (False, "no answer")
    assert cell.differs


# --- telling -----------------------------------------------------------------------------------------------


def cells(reached: dict[tuple[str, str], bool]) -> list[Cell]:
    return [
        Cell(
            attempt,
            reached.get((attempt.source.name, attempt.destination.name), True),
            "",
            SCENE.expected(attempt),
        )
        for attempt in attempts((WEB, DNS, NODE))
    ]


def shown(found: list[Cell]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(as_tables(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_shows_leaks_and_losses_with_their_policy() -> None:
    text = shown(cells({("dev/dns", "shop/web"): True, ("node1", "dev/dns"): False}))
    assert "dev/dns -> shop/web 80/tcp IPv4: reaches, but ingress is denied by NetworkPolicy shop/deny" in text
    assert "node1 -> dev/dns 53/udp IPv4: , but policy allows it" in text
    row = next(line for line in text.splitlines() if line.strip().startswith("2 dev/dns"))
    assert "!✓" in row


def test_table_of_what_is_as_expected_has_no_marks() -> None:
    text = shown(cells({("dev/dns", "shop/web"): False}))
    assert "->" not in text
    table = text.partition("✓ reaches")[0]
    assert "!" not in table
    assert "·" in table


def test_json_has_both_sides_of_each_cell() -> None:
    (wrong,) = [entry for entry in as_json(cells({})) if entry["reached"] != entry["expected"]]
    assert (wrong["source"], wrong["destination"], wrong["port"], wrong["family"]) == (
        "dev/dns",
        "shop/web",
        80,
        4,
    )
