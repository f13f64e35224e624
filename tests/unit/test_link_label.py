"""The label of a pod's host interface: everything of the lease, or nothing."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felix_py.dataplane.link_label import link_label, read_label
from felix_py.layout import interface_name
from felix_py.records import Lease
from policy.model import Family

WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-", min_size=1, max_size=63)
CONTAINER = st.one_of(st.text("0123456789abcdef", min_size=64, max_size=64), WORD)
UID = st.one_of(st.uuids().map(str), st.just(""), WORD)
ADDRESSES = st.dictionaries(st.sampled_from(Family), st.just(""), min_size=1).map(
    lambda chosen: {
        f: "10.244.255.255" if f is Family.V4 else "fd00:1234::ffff:ffff:ffff" for f in sorted(chosen)
    }
)


def lease(container: str = "c" * 64, ifname: str = "eth0", **more: Any) -> Lease:
    fields: dict[str, Any] = {
        "network": "felix-py",
        "namespace": "shop",
        "pod": "web-1",
        "uid": "0f0e0d0c-1111-2222-3333-444455556666",
        "addresses": {Family.V4: "10.244.1.5", Family.V6: "fd00::5"},
        "created": 1_790_000_000.123456,
        **more,
    }
    return Lease(container=container, ifname=ifname, interface=interface_name(container, ifname), **fields)


@settings(max_examples=300)
@given(CONTAINER, WORD, WORD, UID, ADDRESSES, st.integers(0, 2**51))
def test_what_is_written_is_read(
    container: str, namespace: str, pod: str, uid: str, addresses: dict[Family, str], created: int
) -> None:
    made = lease(container, namespace=namespace, pod=pod, uid=uid, addresses=addresses, created=created / 1e6)
    text = link_label(made)
    assert len(text.encode()) <= 255
    if text:
        read = read_label(text)
        assert read == made or (read == replace(made, uid="") and len(namespace + pod) > 70)


@pytest.mark.parametrize("uid", [True, False])
def test_the_longest_names_of_controllers_fit(uid: bool) -> None:
    """Pods that a controller names have 63 characters at most, and so have namespaces."""
    made = lease(
        namespace="n" * (40 if uid else 63),
        pod="p" * 63,
        addresses={Family.V4: "10.244.255.255", Family.V6: "fd00:1234:5678:9abc:def0:1234:5678:9abc"},
    )
    text = link_label(made)
    assert read_label(text) == (made if uid else replace(made, uid=""))
    assert link_label(lease(namespace="n" * 63, pod="p" * 253)) == ""


@pytest.mark.parametrize("field", ["network", "ifname", "container", "pod", "namespace"])
def test_what_cannot_be_one_word_gives_no_label(field: str) -> None:
    assert link_label(lease(**{field: "a b"})) == ""


@pytest.mark.parametrize("address", ["10.244.1", "10.244.1.5/0", "fd00::5", "none"])
def test_what_holds_no_address_is_no_label(address: str) -> None:
    """Whoever may change an interface can write any alias, check sum and all."""
    body = f"felix-py shop/web-1 {address} - . . =c1 =u1 5f"
    assert read_label(f"{body} {zlib.crc32(body.encode()):08x}") is None
    body = body.replace(address, "10.244.1.5")
    assert read_label(f"{body} {zlib.crc32(body.encode()):08x}") is not None


def test_every_damage_is_noticed() -> None:
    text = link_label(lease())
    assert read_label("") is None
    assert read_label("my pod's interface") is None
    for end in range(len(text)):
        assert read_label(text[:end]) is None
        damaged = text[:end] + chr(ord(text[end]) ^ 1) + text[end + 1 :]
        assert read_label(damaged) is None, damaged
