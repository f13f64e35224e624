"""IPv4 routes by IPv6 next hops (RFC 8950), also link-local ones: written, read back as the same, kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from felix_py.dataplane.routes import Routes
from felix_py.desired.planner import learned_routes
from felix_py.records import Update
from policy.model import Family
from tests.support.isolate import run, veth

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

PREFIX, PREFIX6 = "10.244.7.0/24", "fd44:7::/64"


@pytest.fixture
def routes() -> Iterator[Routes]:
    for name, net in (("up0", 1), ("up1", 2)):
        veth(name, f"peer{net}", f"192.0.{net}.1/24", f"fd0{net}::1/64")
    routes = Routes([Family.V4, Family.V6])
    routes.load()
    yield routes
    routes.close()


def learned(paths: list[str]) -> bool:
    found = run("ip", "-4", "route", "show", "proto", "89")
    return all(path in found for path in paths)


@pytest.mark.parametrize(
    ("hops", "shown"),
    [
        ({"fd01::2": "up0"}, ["via inet6 fd01::2 dev up0"]),
        ({"fe80::2%up1": "up1"}, ["via inet6 fe80::2 dev up1"]),
        ({"fd01::2": "up0", "fe80::2%up1": "up1"}, ["via inet6 fd01::2 dev up0", "via inet6 fe80::2 dev up1"]),
        ({"192.0.1.2": "up0", "fd02::2": "up1"}, ["via 192.0.1.2 dev up0", "via inet6 fd02::2 dev up1"]),
    ],
)
def test_ipv4_by_ipv6(routes: Routes, hops: dict[str, str], shown: list[str]) -> None:
    wanted = learned_routes({PREFIX: tuple(hops)}, hops.__getitem__)
    routes.update(Update(routes=dict(wanted)))
    report = routes.write()
    assert not report.failures
    assert learned(shown)
    routes.load()
    assert routes.take_drift() == []
    held = routes.hold(Update()).routes
    routes.update(Update(routes=dict(held)))
    assert routes.write().writes == 0
    run("ip", "route", "del", PREFIX)
    routes.load()
    assert not routes.write().failures
    assert learned(shown)


def test_ipv6_by_a_link_local_next_hop(routes: Routes) -> None:
    routes.update(Update(routes=dict(learned_routes({PREFIX6: ("fe80::2%up1",)}, lambda _hop: "up1"))))
    assert not routes.write().failures
    assert "via fe80::2 dev up1" in run("ip", "-6", "route", "show", "proto", "89")
    routes.load()
    assert routes.take_drift() == []
