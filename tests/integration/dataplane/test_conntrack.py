"""The kernel's table of connections, compared with what conntrack(8) puts there and sees there."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterable, Iterator

import pytest

from felix_py.dataplane.conntrack import Conntrack
from felix_py.dataplane.host_addresses import host_addresses
from felix_py.netlink import conntrack as conntrack_messages
from felix_py.netlink.connection import Netlink
from felix_py.netlink.wire import NETLINK_NETFILTER, attr, message, nested
from felix_py.records import Flow
from policy.model import Family, Protocol
from tests.support.isolate import run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

A, B, SERVICE, WORLD = "10.1.0.2", "10.1.0.3", "10.96.0.1", "198.51.100.7"
A6, B6, WORLD6 = "fd00:1::2", "fd00:1::3", "2001:db8::7"


@pytest.fixture
def table(netns: None) -> Iterator[Conntrack]:
    with Conntrack() as made:
        yield made


def add(source: str, destination: str, *more: str, sport: int = 40000, dport: int = 80) -> str:
    """An established TCP connection; returns its id."""
    ports = ("-p", "tcp", "--state", "ESTABLISHED", "--sport", str(sport), "--dport", str(dport))
    status = ("-t", "600", "-u", "ASSURED,SEEN_REPLY")
    run("conntrack", "-I", "-s", source, "-d", destination, *ports, *status, *more)
    (found,) = [
        line for line in listed() if f"src={source} dst={destination} sport={sport} dport={dport} " in line
    ]
    return ident(found)


def load(lines: Iterable[str]) -> None:
    """Many at once."""
    run("conntrack", "-R", "-", stdin="".join(f"-I {line}\n" for line in lines))


def listed() -> list[str]:
    families = (run("conntrack", "-L", "-f", family, "-o", "id").splitlines() for family in ("ipv4", "ipv6"))
    return [line for lines in families for line in lines]


def ident(line: str) -> str:
    found = re.search(r" id=(\d+)", line)
    assert found
    return found[1]


def idents() -> set[str]:
    return {ident(line) for line in listed()}


def ends(flows: Iterable[Flow]) -> set[tuple[str, str, int]]:
    return {(flow.source, flow.destination, flow.port) for flow in flows}


def test_connections_are_found_by_who_began_and_by_whom_they_reached(table: Conntrack) -> None:
    add(A, B)
    add(B, WORLD, dport=443)
    add(A, SERVICE, "--dst-nat", f"{B}:8080", dport=81)
    add(A, WORLD, "--src-nat", "192.0.2.1:50000", dport=82)
    add(A6, B6)
    assert ends(table.flows([A])) == {(A, B, 80), (A, B, 8080), (A, WORLD, 82)}
    assert ends(table.flows([B])) == {(A, B, 80), (A, B, 8080), (B, WORLD, 443)}
    assert ends(table.flows([WORLD, A6])) == {(B, WORLD, 443), (A, WORLD, 82), (A6, B6, 80)}
    # Nobody talks with the service's address, nor with the one that the world sees.
    assert table.flows([SERVICE, "192.0.2.1", WORLD6]) == []
    assert table.flows([]) == []
    (found,) = table.flows([A6])
    assert (found.protocol, found.replied, found.assured) == (Protocol.TCP, True, True)
    assert 500 < found.expires <= 600


def test_a_deletion_hits_that_very_connection(table: Conntrack) -> None:
    doomed, neighbour, other = add(A, B), add(A, B, sport=40001), add(A6, B6)
    flows = [flow for flow in table.flows([A, A6]) if b"\x9c\x41" not in flow.original]
    deleted, error = table.delete(flows)
    assert error is None
    assert set(deleted) == set(flows)
    assert idents() == {neighbour}
    assert {doomed, other} & idents() == set()
    assert table.delete(flows) == ([], None)
    # The same addresses and ports again are another connection. (The kernel makes the id from the tuple and the
    # entry's place in memory, so that a real new one may have the old one's by chance.)
    add(A, B)
    (again,) = [flow for flow in table.flows([A]) if b"\x9c\x41" not in flow.original]
    assert table.delete([again._replace(entry=again.entry[:-4] + bytes(4))]) == ([], None)
    assert len(idents()) == 2
    assert table.delete([again]) == ([again], None)


def test_a_zone_is_part_of_what_is_deleted(table: Conntrack) -> None:
    here = add(A, B)
    load([f"-p udp -s {A} -d {B} --sport 40000 --dport 80 -t 600 -w 7"])
    in_zone = [flow for flow in table.flows([A]) if flow.protocol is Protocol.UDP]
    assert len(in_zone) == 1
    load([f"-p udp -s {A} -d {B} --sport 40000 --dport 80 -t 600"])
    assert table.delete(in_zone)[0] == in_zone
    left = listed()
    assert sum("zone=7" in line for line in left) == 0
    assert len(left) == 2
    assert here in idents()


def test_an_address_is_forgotten_wherever_it_stands(table: Conntrack) -> None:
    add(A, B)
    add(WORLD, A)
    add(WORLD, SERVICE, "--dst-nat", f"{A}:8080", dport=81)
    add(WORLD, A, "--dst-nat", f"{B}:8080", dport=82)
    add(B, WORLD, "--src-nat", f"{A}:50000", dport=83)
    add(A6, B6)
    kept = {add(B, WORLD), add(WORLD, B), add(B6, WORLD6)}
    assert table.forget([A, A6]) == 6
    assert idents() == kept
    assert table.forget([A, A6]) == 0


def test_busy_addresses_are_those_of_any_end_inside_the_networks(table: Conntrack) -> None:
    add(A, B)
    add(WORLD, SERVICE, "--dst-nat", "10.1.7.7:8080", dport=81)
    add("192.0.2.9", WORLD, "--src-nat", "10.1.8.8:50000", dport=83)
    add(A6, WORLD6)
    add("10.2.0.1", WORLD)
    assert table.busy(["10.1.0.0/16", "fd00:1::/64"]) == {A, B, "10.1.7.7", "10.1.8.8", A6}
    assert table.busy(["10.96.0.0/16"]) == {SERVICE}
    assert table.busy(["fd00:1::/64"]) == {A6}
    assert table.busy(["10.3.0.0/16"]) == table.busy([]) == set()


@pytest.fixture
def crowd(netns: None) -> None:
    """So many connections that the kernel is asked to look for an address by itself, where it can."""
    numbers = range(9000)
    more = [f"--sport 40000 --dport {80 + n % 7} -t 600" for n in numbers]
    load(f"-p tcp --state ESTABLISHED -s 10.2.{n // 250}.{n % 250 + 1} -d {B} {more[n]}" for n in numbers)
    load(f"-p udp -s fd00:2::{n + 1:x} -d {B6} {more[n]}" for n in numbers)


@pytest.mark.usefixtures("crowd")
def test_a_big_table_gives_the_same_answers(table: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = idents()
    add(A, WORLD)
    add(WORLD, A)
    add(A6, WORLD6)
    asked: list[object] = []
    filtered = conntrack_messages.filtered_dump
    monkeypatch.setattr(
        conntrack_messages, "filtered_dump", lambda *about: asked.append(about) or filtered(*about)
    )
    assert ends(table.flows([A])) == {(A, WORLD, 80), (WORLD, A, 80)}
    assert len(asked) == 2
    assert ends(table.flows([A6])) == {(A6, WORLD6, 80)}
    assert len(table.flows([B])) == len(table.flows([B6])) == 9000
    # Too many to have the kernel look for each.
    many = [A, *(f"10.2.0.{n}" for n in range(1, 101))]
    assert len(table.flows(many)) == 102
    assert table.forget([A]) == 2
    assert table.forget([A6]) == 1
    assert table._filters
    assert idents() == kept


@pytest.mark.usefixtures("crowd")
def test_a_kernel_without_filters_is_found_out(table: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.8 it prints everything."""
    add(A, WORLD)
    monkeypatch.setattr(conntrack_messages, "filtered_dump", lambda family, *_: conntrack_messages.dump(family))
    assert ends(table.flows([A])) == {(A, WORLD, 80)}
    assert not table._filters
    assert table.forget([A]) == 1
    assert table.flows([A]) == []


@pytest.mark.usefixtures("crowd")
def test_a_kernel_that_refuses_filters_is_asked_for_all(
    table: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(A, WORLD)

    def refuse(netlink: Netlink, request: bytes) -> Iterator[bytes]:
        if len(request) > 20:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return stream(netlink, request)

    stream = Netlink.stream
    monkeypatch.setattr(Netlink, "stream", refuse)
    assert ends(table.flows([A])) == {(A, WORLD, 80)}
    assert not table._filters


def test_what_is_no_address_is_an_error(table: Conntrack) -> None:
    with pytest.raises(ValueError, match="not an address"):
        table.flows(["10.1.0.0/24"])


def test_a_stream_raises_what_the_kernel_says_and_the_socket_stays_usable() -> None:
    add(A, B)
    with Netlink(NETLINK_NETFILTER) as netlink:
        flags_without_a_value = nested(25, attr(1, b""))
        wrong = message(conntrack_messages.IPCTNL_MSG_CT_GET, 0, b"\2\0\0\0" + flags_without_a_value)
        with pytest.raises(OSError, match=r"."):
            list(netlink.stream(wrong))
        assert len(list(netlink.stream(conntrack_messages.dump(Family.V4)))) == 1


def test_the_hosts_own_addresses() -> None:
    run("ip", "link", "add", "felix0", "type", "veth", "peer", "name", "felix1")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "felix0")
    run("ip", "addr", "add", "192.0.2.2", "peer", "192.0.2.9", "dev", "felix0")
    run("ip", "addr", "add", "2001:db8::1/64", "dev", "felix0", "nodad")
    run("ip", "link", "set", "felix0", "up")
    shown = json.loads(run("ip", "-j", "addr"))
    expected = {info["local"] for link in shown for info in link["addr_info"]}
    assert host_addresses() == expected
    assert {"127.0.0.1", "::1", "192.0.2.1", "192.0.2.2", "2001:db8::1"} <= expected
