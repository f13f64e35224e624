"""The witness of the cluster tests sees an address that two have, whoever says so."""

from __future__ import annotations

import socket
import struct

from felix_py.netlink.wire import attr
from tests.cluster.witness import Holders

NEW, GONE = 24, 25


def route(address: str, interface: int, kind: int = NEW, protocol: int = 88) -> tuple[int, bytes]:
    """A route to one address by an interface."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    head = struct.pack("=BBBBBBBBI", family, 8 * len(packed), 0, 0, 254, protocol, 253, 1, 0)
    return kind, head + attr(1, packed) + attr(4, struct.pack("=i", interface))


def end_of(interface: int) -> tuple[int, bytes]:
    return 17, struct.pack("=BxHiII", 0, 0, interface, 0, 0)


def kernels(*events: tuple[str, tuple[int, bytes]]) -> Holders:
    """What nodes' kernels say, one after the other."""
    holders = Holders("kernels")
    for node, (kind, body) in events:
        holders.kernel_event(node, kind, memoryview(body))
    return holders


def api(*lines: str) -> Holders:
    holders = Holders("api")
    for line in lines:
        holders.object_line(line)
    return holders


def test_two_interfaces_have_one_address() -> None:
    for address in ("10.1.0.5", "fd00::5"):
        one, two = route(address, 7), route(address, 8)
        assert kernels(("n1", one), ("n1", two)).twice
        assert kernels(("n1", one), ("n2", one)).twice, "two nodes"
        assert not kernels(("n1", one), ("n1", one)).twice, "told again"


def test_what_ends_may_be_anothers() -> None:
    one, two = route("10.1.0.5", 7), route("10.1.0.5", 8)
    assert not kernels(("n1", one), ("n1", route("10.1.0.5", 7, GONE)), ("n1", two)).twice
    assert not kernels(("n1", one), ("n1", end_of(7)), ("n1", two)).twice
    assert kernels(("n1", one), ("n1", end_of(9)), ("n1", two)).twice
    assert kernels(("n1", one), ("n2", end_of(7)), ("n1", two)).twice


def test_routes_that_are_no_pods() -> None:
    assert kernels(("n1", route("10.1.0.5", 7, protocol=89))).addresses() == set()


def test_two_objects_have_one_address() -> None:
    assert api("ADDED|a||Running|10.1.0.5", "MODIFIED|b||Pending|10.1.0.5").twice
    for end in ("DELETED|a||Running|10.1.0.5", "MODIFIED|a|2026-01-01T00:00:00Z|Running|10.1.0.5"):
        assert not api("ADDED|a||Running|10.1.0.5", end, "MODIFIED|b||Running|10.1.0.5").twice
    assert not api("ADDED|a||Running|10.1.0.5", "MODIFIED|a||Failed|10.1.0.5", "ADDED|b||Running|10.1.0.5").twice


def test_an_object_that_has_another_address() -> None:
    found = api("ADDED|a||Running|10.1.0.5 fd00::5", "MODIFIED|a||Running|10.1.0.6", "ADDED|b||Running|10.1.0.5")
    assert not found.twice
    assert found.addresses() == {"10.1.0.5", "10.1.0.6"}
