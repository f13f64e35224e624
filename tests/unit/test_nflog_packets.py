"""What is read from NFLOG: messages, IP headers, and what is missing."""

from __future__ import annotations

import struct

import pytest

from felix_py.dataplane.ip_header import IPHeader, parse_ip
from felix_py.dataplane.nflog import Decoder, LoggedPacket
from policy.model import Family
from tests.support.logged import datagram, ipv4, ipv6, logged_message, ports

A4, B4 = "10.1.0.2", "203.0.113.9"
A6, B6 = "fd00:1::2", "2001:db8::9"
TCP, UDP, SCTP = 6, 17, 132


def extension(following: int, words: int = 0) -> bytes:
    """A hop-by-hop, routing or destination header."""
    return struct.pack(">BB", following, words) + b"\0" * (6 + 8 * words)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv4(A4, B4, TCP, ports(1, 80)), (TCP, 1, 80, None)),
        (ipv4(A4, B4, UDP, ports(1, 53)), (UDP, 1, 53, None)),
        (ipv4(A4, B4, SCTP, ports(1, 9)), (SCTP, 1, 9, None)),
        (ipv4(A4, B4, TCP, ports(1, 80), options=3), (TCP, 1, 80, None)),
        (ipv4(A4, B4, TCP, ports(1, 80), options=10), (TCP, 1, 80, None)),
        (ipv4(A4, B4, 1, b"\x08\x00rest"), (1, None, None, (8, 0))),
        (ipv4(A4, B4, 58, b"\x80\x00rest"), (58, None, None, None)),
        (ipv4(A4, B4, 47, b"GREGREGRE"), (47, None, None, None)),
        (ipv4(A4, B4, TCP, b"\x00\x01\x00"), (TCP, None, None, None)),
        (ipv4(A4, B4, TCP, ports(1, 80), offset=0x2000), (TCP, 1, 80, None)),
        (ipv4(A4, B4, TCP, ports(1, 80), offset=0x0010), (TCP, None, None, None)),
        (b"\x43" + ipv4(A4, B4, TCP, ports(1, 80))[1:], (TCP, None, None, None)),
    ],
    ids=[
        *("tcp", "udp", "sctp", "options", "most options", "icmp", "icmpv6 in v4", "gre"),
        *("cut ports", "first fragment", "later fragment", "header length 12"),
    ],
)
def test_ipv4(packet: bytes, expected: tuple[object, ...]) -> None:
    assert parse_ip(Family.V4, packet) == IPHeader(Family.V4, A4, B4, *expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ipv6(A6, B6, TCP, ports(1, 80)), (TCP, 1, 80, None)),
        (ipv6(A6, B6, 58, b"\x80\x01"), (58, None, None, (128, 1))),
        (ipv6(A6, B6, 1, b"\x08\x00"), (1, None, None, None)),
        (ipv6(A6, B6, 0, extension(UDP) + ports(1, 53)), (UDP, 1, 53, None)),
        (ipv6(A6, B6, 0, extension(43, 1) + extension(60) + extension(TCP) + ports(1, 2)), (TCP, 1, 2, None)),
        (ipv6(A6, B6, 44, struct.pack(">BBHI", TCP, 99, 1, 7) + ports(1, 2)), (TCP, 1, 2, None)),
        (ipv6(A6, B6, 44, struct.pack(">BBHI", TCP, 0, 8, 7) + ports(1, 2)), (TCP, None, None, None)),
        (ipv6(A6, B6, 51, struct.pack(">BB", TCP, 4) + b"\0" * 22 + ports(1, 2)), (TCP, 1, 2, None)),
        (ipv6(A6, B6, 50, b"ESP-ESP-ESP"), (50, None, None, None)),
        (ipv6(A6, B6, 0, extension(TCP, 20)), (TCP, None, None, None)),
        (ipv6(A6, B6, 0, extension(0) * 9 + ports(1, 2)), (0, None, None, None)),
        (ipv6(A6, B6, 0, b"\x06"), (0, None, None, None)),
        (ipv6(A6, B6, 59, b""), (59, None, None, None)),
    ],
    ids=[
        *("tcp", "icmpv6", "icmp in v6", "hop by hop", "three extensions", "first fragment", "later fragment"),
        *("authentication", "esp", "beyond the copy", "too many extensions", "cut extension", "nothing"),
    ],
)
def test_ipv6(packet: bytes, expected: tuple[object, ...]) -> None:
    assert parse_ip(Family.V6, packet) == IPHeader(Family.V6, A6, B6, *expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", list(Family), ids=["v4", "v6"])
def test_every_beginning_of_a_packet(family: Family) -> None:
    whole = ipv4(A4, B4, TCP, ports(1, 80)) if family is Family.V4 else ipv6(A6, B6, TCP, ports(1, 80))
    head = 20 if family is Family.V4 else 40
    for length in range(len(whole) + 1):
        found = parse_ip(family, whole[:length])
        assert (found is not None) is (length >= head)
        assert found is None or (found.port == 80) is (length >= head + 4)


def test_the_other_family_is_no_packet() -> None:
    assert parse_ip(Family.V4, ipv6(A6, B6, TCP, ports(1, 80))) is None
    assert parse_ip(Family.V6, ipv4(A4, B4, TCP, ports(1, 80)) + b"\0" * 40) is None


def test_a_message_with_everything() -> None:
    decoder = Decoder(clock=lambda: 12.5)
    message = logged_message("felix:SOURCE", ipv4(A4, B4, TCP, ports(1, 80)), hook=0)
    header = IPHeader(Family.V4, A4, B4, TCP, 1, 80)
    expected = LoggedPacket(Family.V4, "felix:SOURCE", header, "PREROUTING", 7, 9, 0x30000, 12.5)
    assert list(decoder.decode(datagram(message))) == [expected]


def test_many_messages_in_one_datagram_of_both_families_and_others_between() -> None:
    decoder = Decoder()
    four, six = ipv4(A4, B4, TCP, ports(1, 80)), ipv6(A6, B6, UDP, ports(1, 53))
    found = list(
        decoder.decode(
            datagram(
                logged_message("one", four, sequence=0),
                logged_message("acknowledgement", four, kind=2, sequence=None),
                logged_message("bridge", four, family=7, sequence=1),
                logged_message("two", six, family=10, sequence=2),
                logged_message("none", b"\x45", sequence=3),
                logged_message("cut", four, sequence=4)[:-30],
            )
        )
    )
    assert [packet.prefix for packet in found] == ["one", "two", "none", "cut"]
    assert [packet.header.port if packet.header else None for packet in found] == [80, 53, None, None]
    assert decoder.lost == 0


@pytest.mark.parametrize(
    ("sequences", "lost"),
    [
        ([0, 1, 2], 0),
        ([5, 6], 0),
        ([0, 4], 3),
        ([0, 4, 5, 10], 7),
        ([0xFFFFFFFE, 0xFFFFFFFF, 0, 1], 0),
        ([0xFFFFFFFE, 2], 3),
        ([7, 3, 4], 0),
    ],
)
def test_gaps_in_the_sequence_are_counted(sequences: list[int], lost: int) -> None:
    decoder = Decoder()
    for sequence in sequences:
        list(decoder.decode(datagram(logged_message("x", b"", sequence=sequence))))
    assert decoder.lost == lost
