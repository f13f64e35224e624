"""Which of the kernel's events concern us, message by message."""

from __future__ import annotations

import socket
import struct

import pytest

from felix_py.dataplane.kernel_events import LOST, Hint, HostEvents, origin, rules_concern_us
from felix_py.dataplane.protocols import Look
from felix_py.layout import LINK_GROUP
from felix_py.netlink.links import Link
from felix_py.netlink.routes import Destination
from felix_py.netlink.wire import attr, message
from policy.model import Family

NOTHING, RETRY = Hint(), Hint(retry=True)
ROUTES, LINKS, SETTINGS = (Hint(part) for part in (Look.ROUTES, Look.LINKS, Look.SETTINGS))
POD = Hint(Look.LINKS | Look.ROUTES)

OURS, LEAVING, UPLINK, OTHER = 2, 3, 4, 5
NAMES = {OURS: "felix0000000001", LEAVING: "felix0000000002", UPLINK: "eth0", OTHER: "cali1"}
MAC = b"\xee" * 6
UP = 0x1043


def link_event(
    index: int,
    flags: int = UP,
    mac: bytes = MAC,
    *,
    name: str = "",
    gone: bool = False,
    group: int = LINK_GROUP,
    master: int = 0,
) -> bytes:
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    body += attr(3, (name or NAMES[index]).encode() + b"\0") + attr(1, mac)
    body += attr(27, struct.pack("=I", group)) + (attr(10, struct.pack("=I", master)) if master else b"")
    return message(17 if gone else 16, 0, body)


def address_event(index: int, *, gone: bool, family: int = socket.AF_INET) -> bytes:
    return message(21 if gone else 20, 0, struct.pack("=BBBBI", family, 32, 0, 0, index) + attr(2, b"\x0a\0\0\1"))


def route_event(protocol: int, host: int = 1, interface: int = OURS, *, gone: bool = False) -> bytes:
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, 0, 0, 254, protocol, 253, 1, 0)
    body += attr(1, bytes((10, 0, 0, host))) + attr(4, struct.pack("=I", interface))
    return message(25 if gone else 24, 0, body)


def setting_event(index: int, setting: int, value: int, family: int = socket.AF_INET) -> bytes:
    body = (
        struct.pack("=Bxxx", family) + attr(1, struct.pack("=i", index)) + attr(setting, struct.pack("=i", value))
    )
    return message(80, 0, body)


def wants(destination: Destination) -> bool:
    return destination == (Family.V4, b"\x0a\0\0\1", 32)


@pytest.fixture
def events() -> HostEvents:
    made = HostEvents(lambda name: name == NAMES[OURS], wants)
    made.begin(Link(index, UP, name, MAC, "", LINK_GROUP) for index, name in NAMES.items())
    return made


CASES = {
    "host end as it should be": (link_event(OURS), NOTHING),
    "host end without carrier": (link_event(OURS, 0x1003), NOTHING),
    "host end down": (link_event(OURS, 0x1002), POD),
    "host end with another MAC": (link_event(OURS, mac=b"\2\0\0\0\0\1"), POD),
    "host end in another group": (link_event(OURS, group=7), POD),
    "host end in a bridge": (link_event(OURS, master=UPLINK), POD),
    "another interface takes the name of a host end": (link_event(9, name=NAMES[OURS]), POD),
    "host end deleted": (link_event(OURS, gone=True), POD),
    "host end renamed": (link_event(OURS, name="mine"), POD),
    "host end that is being deleted, down": (link_event(LEAVING, 0x1002), NOTHING),
    "host end that is being deleted, gone": (link_event(LEAVING, gone=True), NOTHING),
    "uplink as it was": (link_event(UPLINK, mac=b"\2\0\0\0\0\1"), NOTHING),
    "uplink down": (link_event(UPLINK, 0x1002), ROUTES),
    "uplink gone": (link_event(UPLINK, gone=True), ROUTES),
    "another interface comes up": (link_event(9, name="eth9"), RETRY),
    "another interface made, still down": (link_event(9, 0x1002, name="eth9"), NOTHING),
    "address added to the uplink": (address_event(UPLINK, gone=False), RETRY),
    "address taken from the uplink": (address_event(UPLINK, gone=True), ROUTES),
    "address taken from an interface we know nothing of": (address_event(99, gone=True), ROUTES),
    "address added to a host end": (address_event(OURS, gone=False), NOTHING),
    "address taken from a host end": (address_event(OURS, gone=True), POD),
    "address taken from one that is being deleted": (address_event(LEAVING, gone=True), NOTHING),
    "pod's route deleted": (route_event(88, gone=True), ROUTES),
    "pod's route deleted with its interface": (route_event(88, interface=LEAVING, gone=True), NOTHING),
    "learned route deleted": (route_event(89, 9, UPLINK, gone=True), ROUTES),
    "route of our protocol added": (route_event(88, 7, OTHER), ROUTES),
    "others' route takes our destination": (route_event(4, 1, OTHER), ROUTES),
    "others' route takes another destination": (route_event(4, 2, OTHER), NOTHING),
    "forwarding switched off": (setting_event(-1, 2, 0), SETTINGS),
    "forwarding switched off, IPv6": (setting_event(-1, 2, 0, socket.AF_INET6), SETTINGS),
    "forwarding switched on": (setting_event(-1, 2, 1), NOTHING),
    "default for new interfaces": (setting_event(-2, 2, 0), NOTHING),
    "forwarding of the uplink": (setting_event(UPLINK, 2, 0), NOTHING),
    "forwarding of a host end": (setting_event(OURS, 2, 0), LINKS),
    "reverse path filter of a host end": (setting_event(OURS, 3, 0), LINKS),
    "proxy ARP of a host end": (setting_event(OURS, 5, 1), LINKS),
    "settings as they should be": (setting_event(OURS, 5, 0) + setting_event(OURS, 3, 1), NOTHING),
    "multicast forwarding of a host end": (setting_event(OURS, 4, 1), NOTHING),
    "neighbour entry": (message(28, 0, bytes(12)), NOTHING),
    "cut short": (link_event(OURS)[:18], LOST),
    "nonsense": (b"\x03\0\0\0" + bytes(20), LOST),
}


@pytest.mark.parametrize("case", CASES)
def test_one_event(events: HostEvents, case: str) -> None:
    data, expected = CASES[case]
    assert events.feed([data]) == expected


def test_a_bridge_that_lets_a_port_go_does_not_delete_it(events: HostEvents) -> None:
    body = struct.pack("=BxHiII", socket.AF_BRIDGE, 1, UPLINK, UP, 0) + attr(3, b"eth0\0")
    assert events.feed([message(17, 0, body)]) == NOTHING
    assert events.feed([link_event(UPLINK, 0x1002)]) == ROUTES


def test_a_host_end_that_is_being_made_concerns_us_only_if_it_stays_unready() -> None:
    events = HostEvents(lambda name: name == NAMES[OURS], wants)
    events.begin([])
    steps = [link_event(OURS, 0x1002, b"\2\0\0\0\0\1"), link_event(OURS, 0x1002), link_event(OURS, 0x1003)]
    assert events.feed(steps) == NOTHING
    assert HostEvents(lambda name: name == NAMES[OURS], wants).feed(steps[:2]) == POD


def test_down_and_up_within_one_batch_is_not_missed(events: HostEvents) -> None:
    assert events.feed([link_event(OURS, 0x1002), link_event(OURS)]) == POD
    assert events.feed([link_event(UPLINK, 0x1002), link_event(UPLINK)]) == Hint(Look.ROUTES, retry=True)


def test_several_messages_in_a_datagram_and_several_datagrams(events: HostEvents) -> None:
    data = [route_event(4, 2) + setting_event(-1, 2, 0), link_event(9, name="eth9")]
    assert events.feed(data) == Hint(Look.SETTINGS, retry=True)


def chain_message(kind: int, table: str, chain: str, *, by: int = 0, more: bytes = b"") -> bytes:
    """NFT_MSG_NEWRULE (6), DELRULE (8), NEWCHAIN (3) or DELCHAIN (5)."""
    name = attr(2 if kind in (6, 8) else 3, chain.encode() + b"\0")
    body = b"\x02\0\0\0" + attr(1, table.encode() + b"\0") + name + more
    return struct.pack("=IHHII", 16 + len(body), 10 << 8 | kind, 0, 0, by) + body


@pytest.mark.parametrize(
    ("data", "concerns"),
    [
        (chain_message(6, "filter", "FELIX-FORWARD"), True),
        (chain_message(8, "nat", "FELIX-POSTROUTING"), True),
        (chain_message(5, "filter", "FELIX-CE-0123456789abcdef"), True),
        (chain_message(6, "filter", "FORWARD"), True),
        (chain_message(8, "raw", "PREROUTING"), True),
        (chain_message(3, "filter", "INPUT"), True),
        (chain_message(6, "filter", "KUBE-FORWARD"), False),
        (chain_message(3, "nat", "KUBE-POSTROUTING"), False),
        (chain_message(6, "nat", "KUBE-SVC-0123456789ABCDEF", more=attr(9, b"comment FORWARD \0")), False),
        (chain_message(6, "nat", "KUBE-SVC-A") + chain_message(8, "filter", "FELIX-ALLOW"), True),
        (b"", False),
    ],
)
def test_messages_about_rules(data: bytes, concerns: bool) -> None:
    assert rules_concern_us(data) is concerns


def test_the_origin_of_messages_about_rules() -> None:
    assert origin(chain_message(6, "filter", "FORWARD", by=4711)) == 4711
    assert origin(b"short") == 0
