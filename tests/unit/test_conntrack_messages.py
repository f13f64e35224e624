"""Connection tracking entries, from the kernel's bytes to what policy sees."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

from felix_py.netlink.conntrack import POLICY_ENDS, End, concerned, delete, filtered_dump, packed, read
from felix_py.netlink.wire import attr, nested
from felix_py.records import Flow
from policy.model import Family, Protocol

V4, V6 = Family.V4, Family.V6
TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP

# Dumped by Linux 6.18 (IPCTNL_MSG_CT_GET), less the netlink header.
TCP_ENTRY = bytes.fromhex(
    "020000003400018014000180080001000a000001080002000a0000021c0002800500010006000000060002009c4000000600"
    "0300005000003400028014000180080001000a000002080002000a0000011c00028005000100060000000600020000500000"
    "060003009c400000080003000000000e080008000000000008000c00598cfff808000b000000000208000700000002573000"
    "04802c000180050001000300000005000200000000000500030000000000060004000000000006000500000000001c001880"
    "080001000000000008000200000000000800030000000000"
)
SCTP_ENTRY = bytes.fromhex(
    "020000003400018014000180080001000a000001080002000a0000021c0002800500010084000000060002009c4000000600"
    "0300005000003400028014000180080001000a000002080002000a0000011c00028005000100840000000600020000500000"
    "060003009c400000080003000000000e080008000000000008000c009d378b4a08000b000000000108000700000002572000"
    "04801c0003800500010004000000080002000000000008000300000000001c00188008000100000000000800020000000000"
    "0800030000000000"
)
UDP6 = bytes.fromhex(
    "0a0000004c0001802c00018014000300fd00000000000000000000000000000114000400fd00000000000000000000000000"
    "00021c0002800500010011000000060002009c40000006000300003500004c0002802c00018014000300fd00000000000000"
    "000000000000000214000400fd0000000000000000000000000000011c000280050001001100000006000200003500000600"
    "03009c400000080003000000000e080008000000000008000c008904a0b508000b000000000108000700000002571c001880"
    "080001000000000008000200000000000800030000000000"
)
DNAT = bytes.fromhex(
    "020000003400018014000180080001000a000001080002000a6000011c0002800500010006000000060002009c4000000600"
    "030001bb00003400028014000180080001000a000003080002000a0000011c000280050001000600000006000200192b0000"
    "060003009c400000080003000000000e080008000000000008000c0021b9c68008000b000000000108000700000002573000"
    "04802c000180050001000300000005000200000000000500030000000000060004000000000006000500000000001c001880"
    "080001000000000008000200000000000800030000000000"
)
MASQUERADE = bytes.fromhex(
    "020000003400018014000180080001000a00000108000200c63364071c0002800500010006000000060002009c4100000600"
    "030001bb0000340002801400018008000100c633640708000200c00002011c00028005000100060000000600020001bb0000"
    "06000300ee480000080003000000000e080008000000000008000c00dc4213ba08000b000000000108000700000002573000"
    "04802c000180050001000300000005000200000000000500030000000000060004000000000006000500000000001c001880"
    "080001000000000008000200000000000800030000000000"
)
UNREPLIED = bytes.fromhex(
    "020000003400018014000180080001000a000001080002000a0000021c0002800500010011000000060002009c4000000600"
    "0300005000003400028014000180080001000a000002080002000a0000011c00028005000100110000000600020000500000"
    "060003009c4000000800030000000008080008000000000008000c0069cc140308000b000000000108000700000002571c00"
    "1880080001000000000008000200000000000800030000000000"
)
RELATED = bytes.fromhex(
    "020000003400018014000180080001000a000001080002000a0000021c0002800500010006000000060002009c4900000600"
    "0300138800003400028014000180080001000a000002080002000a0000011c00028005000100060000000600020013880000"
    "060003009c490000080003000000000f080008000000000008000c00b6d351e408000b000000000134000e80140001800800"
    "01000a000001080002000a0000021c0002800500010006000000060002009c40000006000300005000000800070000000257"
    "300004802c000180050001000300000005000200000000000500030000000000060004000000000006000500000000001c00"
    "1880080001000000000008000200000000000800030000000000"
)
ZONE = bytes.fromhex(
    "020000003400018014000180080001000a000008080002000a0000091c0002800500010011000000060002009c4000000600"
    "0300005000003400028014000180080001000a000009080002000a0000081c00028005000100110000000600020000500000"
    "060003009c4000000600120000050000080003000000000e080008000000000008000c004fa3f6f208000b00000000010800"
    "0700000002571c001880080001000000000008000200000000000800030000000000"
)
ICMP = bytes.fromhex(
    "020000003c00018014000180080001000a000001080002000a00000224000280050001000100000006000400000700000500"
    "05000800000005000600000000003c00028014000180080001000a000002080002000a000001240002800500010001000000"
    "060004000007000005000500000000000500060000000000080003000000000e080008000000000008000c009483abec0800"
    "0b000000000108000700000002571c001880080001000000000008000200000000000800030000000000"
)
ICMP6 = bytes.fromhex(
    "0a000000540001802c00018014000300fd00000000000000000000000000000114000400fd00000000000000000000000000"
    "000224000280050001003a000000060007000007000005000800800000000500090000000000540002802c00018014000300"
    "fd00000000000000000000000000000214000400fd00000000000000000000000000000124000280050001003a0000000600"
    "07000007000005000800810000000500090000000000080003000000000e080008000000000008000c00ef0508b608000b00"
    "0000000108000700000002571c001880080001000000000008000200000000000800030000000000"
)
OTHER = bytes.fromhex(
    "020000002400018014000180080001000a000001080002000a0000020c000280050001006100000024000280140001800800"
    "01000a000002080002000a0000010c0002800500010061000000080003000000000e080008000000000008000c0080df2ee7"
    "08000b000000000108000700000002571c001880080001000000000008000200000000000800030000000000"
)


def seen(source: str, destination: str, protocol: Protocol | None, port: int, **more: Any) -> Flow:
    return Flow(source, destination, protocol, port, expires=599)._replace(**more)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (TCP_ENTRY, seen("10.0.0.1", "10.0.0.2", TCP, 80)),
        (SCTP_ENTRY, seen("10.0.0.1", "10.0.0.2", SCTP, 80)),
        (UDP6, seen("fd00::1", "fd00::2", UDP, 53)),
        # To a service at 10.96.0.1:443: what counts is where it went.
        (DNAT, seen("10.0.0.1", "10.0.0.3", TCP, 6443)),
        # The world answers to the node's address; it is the pod's connection all the same.
        (MASQUERADE, seen("10.0.0.1", "198.51.100.7", TCP, 443)),
        (UNREPLIED, seen("10.0.0.1", "10.0.0.2", UDP, 80, replied=False, assured=False)),
        (ICMP, seen("10.0.0.1", "10.0.0.2", None, 0)),
        (ICMP6, seen("fd00::1", "fd00::2", None, 0)),
        (OTHER, seen("10.0.0.1", "10.0.0.2", None, 0)),
        (ZONE, seen("10.0.0.8", "10.0.0.9", UDP, 80)),
    ],
)
def test_an_entry_is_what_policy_saw(entry: bytes, expected: Flow) -> None:
    found = read(entry)
    assert found._replace(entry=b"", original=b"") == expected
    assert found.original


def test_a_related_connection_names_the_one_that_it_belongs_to() -> None:
    parent, child = read(TCP_ENTRY), read(RELATED)
    assert (child.source, child.port) == ("10.0.0.1", 5000)
    assert child.parent == parent.original
    assert not parent.parent


@pytest.mark.parametrize(
    ("entry", "request_hex"),
    [
        # Family, the original tuple, the zone if there is one, the id: nothing else.
        (TCP_ENTRY, TCP_ENTRY[:56].hex() + "08000c00" + "598cfff8"),
        (DNAT, DNAT[:56].hex() + "08000c00" + "21b9c680"),
        (ZONE, ZONE[:56].hex() + "0600120000050000" + "08000c00" + "4fa3f6f2"),
    ],
)
def test_a_deletion_names_one_entry(entry: bytes, request_hex: str) -> None:
    made = delete(read(entry))
    assert made[16:].hex() == request_hex
    length, kind = struct.unpack_from("=IH", made)
    assert (length, kind) == (len(made), 0x0102)


ENTRIES = [TCP_ENTRY, SCTP_ENTRY, UDP6, DNAT, MASQUERADE, ICMP, ICMP6, OTHER, ZONE, RELATED]


def otherwise(entry: bytes) -> bytes:
    """The same entry as a kernel might print it that puts the attributes of tuples in another order."""
    first = entry[4] | entry[5] << 8
    out = entry[:4]
    for start, kind in ((4, 1), (4 + first, 2)):
        end = start + (entry[start] | entry[start + 1] << 8)
        ip = start + 4 + (entry[start + 4] | entry[start + 5] << 8)
        addresses = entry[start + 8 : ip]
        half = len(addresses) // 2
        swapped = nested(1, addresses[half:], addresses[:half])
        out += nested(kind, entry[ip:end], swapped)
    return out + entry[4 + 2 * first :]


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_order_of_attributes_does_not_matter(entry: bytes) -> None:
    moved = otherwise(entry)
    assert moved != entry
    assert read(moved)[:7] == read(entry)[:7]
    family = V6 if entry[0] == socket.AF_INET6 else V4
    for address in ("10.0.0.1", "10.0.0.2", "10.96.0.1", "192.0.2.1", "fd00::1", "fd00::2"):
        of, raw = packed(address)
        for ends in (POLICY_ENDS, tuple(End)):
            test = concerned({of: {raw}}, ends)
            assert test(moved) is test(entry)
            assert of is family or not test(entry)


@pytest.mark.parametrize(
    ("entry", "by_policy", "anywhere"),
    [
        (TCP_ENTRY, {"10.0.0.1", "10.0.0.2"}, set()),
        (UDP6, {"fd00::1", "fd00::2"}, set()),
        (DNAT, {"10.0.0.1", "10.0.0.3"}, {"10.96.0.1"}),
        (MASQUERADE, {"10.0.0.1", "198.51.100.7"}, {"192.0.2.1"}),
        (ICMP6, {"fd00::1", "fd00::2"}, set()),
    ],
)
def test_whose_an_entry_is(entry: bytes, by_policy: set[str], anywhere: set[str]) -> None:
    for address in by_policy | anywhere | {"10.9.9.9", "fd99::9"}:
        of, raw = packed(address)
        other = V4 if of is V6 else V6
        for wanted in ({of: {raw}}, {other: {raw}, of: {raw}}):
            assert concerned(wanted, POLICY_ENDS)(entry) is (address in by_policy), address
            assert concerned(wanted, tuple(End))(entry) is (address in by_policy | anywhere), address


def test_the_kernels_filter_names_one_address_at_one_end() -> None:
    made = filtered_dump(V4, End.REPLY_SOURCE, packed("10.0.0.2")[1])
    expected = nested(2, nested(1, attr(1, bytes([10, 0, 0, 2])))) + nested(25, attr(2, struct.pack("=I", 1)))
    assert made[20:] == expected


@pytest.mark.parametrize("entry", [TCP_ENTRY[:4], TCP_ENTRY[:4] + nested(1, attr(9, b"")), TCP_ENTRY[:56]])
def test_an_entry_without_addresses_is_an_error(entry: bytes) -> None:
    with pytest.raises(ValueError, match="without addresses"):
        read(entry)


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.1/32", "fd00::1%eth0", "x:y"])
def test_what_is_no_address_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not an address"):
        packed(text)
