"""The witness of the cluster tests sees an address that two have, whoever says so."""

from __future__ import annotations

from tests.cluster.witness import Holders


def kernels(*lines: str) -> Holders:
    """``NODE LINE`` each, as ``ip -o monitor link route label`` prints them."""
    holders = Holders("kernels")
    for line in lines:
        holders.kernel_line(*line.split(" ", 1))
    return holders


def api(*lines: str) -> Holders:
    holders = Holders("api")
    for line in lines:
        holders.object_line(line)
    return holders


def test_two_interfaces_have_one_address() -> None:
    one = "[ROUTE]10.1.0.5 dev felix1 proto 88 scope link"
    assert kernels(f"n1 {one}", "n1 [ROUTE]10.1.0.5 dev felix2 proto 88 scope link").twice
    assert kernels(f"n1 {one}", f"n2 {one}").twice, "two nodes"
    assert not kernels(f"n1 {one}", f"n1 {one}").twice, "told again"


def test_what_ends_may_be_anothers() -> None:
    one, two = (f"[ROUTE]10.1.0.5 dev felix{number} proto 88 scope link" for number in (1, 2))
    assert not kernels(
        f"n1 {one}", "n1 [ROUTE]Deleted 10.1.0.5 dev felix1 proto 88 scope link", f"n1 {two}"
    ).twice
    assert not kernels(f"n1 {one}", "n1 [LINK]Deleted 3: felix1@if2: <BROADCAST> mtu 1500", f"n1 {two}").twice
    assert kernels(f"n1 {one}", "n1 [LINK]Deleted 3: felix9@if2: <BROADCAST> mtu 1500", f"n1 {two}").twice


def test_routes_that_are_no_pods() -> None:
    others = "[ROUTE]10.1.0.0/28 via 172.31.0.102 dev eth0 proto 89", "[ROUTE]blackhole 10.1.1.0/28 proto 88"
    assert kernels(*(f"n1 {line}" for line in others)).addresses() == set()


def test_two_objects_have_one_address() -> None:
    assert api("ADDED|a||Running|10.1.0.5", "MODIFIED|b||Pending|10.1.0.5").twice
    for end in ("DELETED|a||Running|10.1.0.5", "MODIFIED|a|2026-01-01T00:00:00Z|Running|10.1.0.5"):
        assert not api("ADDED|a||Running|10.1.0.5", end, "MODIFIED|b||Running|10.1.0.5").twice
    assert not api("ADDED|a||Running|10.1.0.5", "MODIFIED|a||Failed|10.1.0.5", "ADDED|b||Running|10.1.0.5").twice


def test_an_object_that_has_another_address() -> None:
    found = api("ADDED|a||Running|10.1.0.5 fd00::5", "MODIFIED|a||Running|10.1.0.6", "ADDED|b||Running|10.1.0.5")
    assert not found.twice
    assert found.addresses() == {"10.1.0.5", "10.1.0.6"}
