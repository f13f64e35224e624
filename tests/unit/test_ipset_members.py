"""Members of IP sets, from text to the kernel's bytes and back."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_py.netlink.ipset_members import canonical, decode, encode
from felix_py.records import SetType
from policy.model import Family

V4, V6 = Family.V4, Family.V6


@pytest.mark.parametrize(
    ("kind", "family", "text", "key"),
    [
        # As the kernel printed them in a dump (IPSET_CMD_LIST).
        (SetType.IP, V4, "10.0.0.1", "0c000180080001000a000001"),
        (SetType.NET, V4, "10.0.0.0/8", "0c000180080001000a0000000500030008000000"),
        (SetType.NET, V4, "10.1.0.1", "0c000180080001000a0100010500030020000000"),
        (SetType.IP_PORT, V4, "10.0.0.1,tcp:80", "0c000180080001000a00000106000440005000000500070006000000"),
        (
            SetType.NET_IFACE,
            V4,
            "10.0.0.1,felixabc",
            "0c000180080001000a00000105000300200000000d00170066656c697861626300000000",
        ),
        (SetType.IP, V6, "fd00::1", "1800018014000200fd000000000000000000000000000001"),
        (
            SetType.IP_PORT,
            V6,
            "fd00::1,sctp:80",
            "1800018014000200fd00000000000000000000000000000106000440005000000500070084000000",
        ),
    ],
)
def test_keys_are_the_kernels_bytes(kind: SetType, family: Family, text: str, key: str) -> None:
    assert encode(kind, family, text).hex() == key
    assert decode(bytes.fromhex(key)) == text
    assert canonical(kind, family, bytes.fromhex(key)).hex() == key


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (SetType.NET, "10.1.2.3/8", "10.0.0.0/8"),
        (SetType.NET, "10.1.2.3/32", "10.1.2.3"),
        (SetType.NET_IFACE, "10.1.2.3/32,felixa", "10.1.2.3,felixa"),
    ],
)
def test_one_member_in_two_spellings(kind: SetType, one: str, other: str) -> None:
    assert encode(kind, V4, one) == encode(kind, V4, other)
    assert encode(SetType.IP, V6, "fd00:0:0::0:1") == encode(SetType.IP, V6, "fd00::1")


@pytest.mark.parametrize(
    ("kind", "family", "text"),
    [
        (SetType.IP, V4, ""),
        (SetType.IP, V4, "10.0.0"),
        (SetType.IP, V4, "10.0.0.1/32"),
        (SetType.IP, V4, "10.0.0.1,tcp:80"),
        (SetType.IP, V4, "fd00::1"),
        (SetType.IP, V6, "10.0.0.1"),
        (SetType.IP, V4, "10.0.0.1\0"),
        (SetType.NET, V4, "0.0.0.0/0"),
        (SetType.NET, V4, "10.0.0.0/33"),
        (SetType.NET, V4, "10.0.0.0/"),
        (SetType.NET, V4, "10.0.0.0/-1"),
        (SetType.NET, V4, "10.0.0.0/255.0.0.0"),
        (SetType.NET, V6, "::/0"),
        (SetType.NET, V6, "fd00::/8x"),
        (SetType.IP_PORT, V4, "10.0.0.1"),
        (SetType.IP_PORT, V4, "10.0.0.1,80"),
        (SetType.IP_PORT, V4, "10.0.0.1,icmp:8"),
        (SetType.IP_PORT, V4, "10.0.0.1,tcp:65536"),
        (SetType.IP_PORT, V4, "10.0.0.1,tcp:-1"),
        (SetType.NET_IFACE, V4, "10.0.0.1"),
        (SetType.NET_IFACE, V4, "10.0.0.1,"),
        (SetType.NET_IFACE, V4, "10.0.0.1,a b"),
        (SetType.NET_IFACE, V4, "10.0.0.1,a\0b"),
        (SetType.NET_IFACE, V4, "10.0.0.1," + "x" * 16),
    ],
)
def test_not_a_member(kind: SetType, family: Family, text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        encode(kind, family, text)


networks = st.one_of(
    st.builds(
        lambda a, p: ipaddress.IPv4Network((a, p), strict=False), st.integers(0, 2**32 - 1), st.integers(1, 32)
    ),
    st.builds(
        lambda a, p: ipaddress.IPv6Network((a, p), strict=False), st.integers(0, 2**128 - 1), st.integers(1, 128)
    ),
)


@given(networks)
def test_networks_come_back(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    family = Family(network.version)
    text = decode(encode(SetType.NET, family, str(network)))
    assert ipaddress.ip_network(text) == network
    with_interface = decode(encode(SetType.NET_IFACE, family, f"{network},felix0"))
    assert with_interface == f"{text},felix0"


def test_a_dumped_member_with_flags_is_recognised() -> None:
    nomatch = bytes.fromhex("0c000180080001000a010000050003001000000008000840") + b"\0\0\0\x04"
    assert canonical(SetType.NET, V4, nomatch) == encode(SetType.NET, V4, "10.1.0.0/16")
