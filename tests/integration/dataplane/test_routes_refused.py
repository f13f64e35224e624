"""Thousands of routes that cannot be written hold up nothing else, are all reported, and each has its turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from felix_py.dataplane import routes as routes_module
from felix_py.dataplane.routes import Routes
from felix_py.netlink import routes as route_messages
from felix_py.netlink.routes import Packed
from felix_py.records import NextHop, Report, Route
from felix_py.refs import RouteRef
from policy.model import Family
from tests.support.isolate import run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

MANY = 2500
GATEWAY = NextHop("192.0.2.2", "up0")


def wanted(prefix: str) -> Route:
    return Route(RouteRef(prefix, 89), next_hops=(GATEWAY,))


def prefixes(second: int, number: int = MANY) -> list[str]:
    return [f"10.{second}.{index >> 8}.{index & 255}/32" for index in range(number)]


def batch(verb: str, lines: list[str]) -> None:
    run("ip", "-batch", "-", stdin="".join(f"route {verb} {line}\n" for line in lines))


@pytest.fixture
def routes() -> Iterator[Routes]:
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up")
    routes = Routes([Family.V4])
    routes.load()
    yield routes
    routes.close()


def ours() -> set[str]:
    lines = run("ip", "route", "show", "proto", "89").splitlines()
    return {line.split()[0] for line in lines}


def refused(report: Report) -> int:
    """Routes that could not be written; those of one reason are told together beyond some."""
    return sum(failure.count for failure in report.failures)


class Counted:
    """How many routes each apply sends to the kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent = 0
        inner = route_messages.new

        def new(route: Packed, flags: int) -> bytes:
            self.sent += 1
            return inner(route, flags)

        monkeypatch.setattr(route_messages, "new", new)

    def take(self) -> int:
        taken, self.sent = self.sent, 0
        return taken


def test_refused_routes_are_tried_again_in_portions(routes: Routes, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(monkeypatch)
    taken, free = prefixes(1), prefixes(2, 100)
    batch("add", [f"{prefix} via 192.0.2.3 proto 4" for prefix in taken])
    for prefix in (*taken, *free):
        routes.route(RouteRef(prefix, 89), wanted(prefix))
    report = routes.write()
    assert refused(report) == MANY
    assert {failure.reason for failure in report.failures} == {
        "a route that is not ours has this destination (protocol 4)",
        "somebody else's route has this destination",
    }
    assert len(ours()) == len(free), "the others are in"
    assert counted.take() == len(taken) + len(free)

    new = "10.3.0.1/32"
    routes.route(RouteRef(new, 89), wanted(new))
    report = routes.write()
    assert (report.writes, refused(report), counted.take()) == (1, MANY, routes_module._AGAIN + 1)
    assert new.partition("/")[0] in ours()

    # Whoever took them gives them back.
    batch("del", [f"{prefix} via 192.0.2.3 proto 4" for prefix in taken])
    left = MANY
    while left:
        report = routes.write()
        assert counted.take() == report.writes == min(left, routes_module._AGAIN)
        left -= report.writes
        assert refused(report) == left
    assert len(ours()) == MANY + len(free) + 1
    assert routes.write().failures == ()
    assert not counted.take()


def test_refused_and_not_wanted_any_more_is_no_failure(routes: Routes) -> None:
    batch("add", ["blackhole 10.1.0.0/24 proto 4", "blackhole 10.2.0.0/24 proto 4"])
    for prefix in ("10.1.0.0/24", "10.2.0.0/24"):
        routes.route(RouteRef(prefix, 89), wanted(prefix))
    assert len(routes.write().failures) == 2
    routes.route(RouteRef("10.1.0.0/24", 89), None)
    assert [str(failure.ref) for failure in routes.write().failures] == ["route 10.2.0.0/24"]
    batch("del", ["blackhole 10.2.0.0/24 proto 4"])
    routes.load()
    assert routes.write().failures == ()
    assert ours() == {"10.2.0.0/24"}
