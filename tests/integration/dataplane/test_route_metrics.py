"""Routes with a metric of their own (``setPriority``): one of ours a prefix, and never none while it changes."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from felix_py.dataplane.part import Sweep
from felix_py.dataplane.routes import Routes
from felix_py.netlink.routes import RTM_DELROUTE, RTM_NEWROUTE
from felix_py.netlink.wire import NETLINK_ROUTE
from felix_py.records import NextHop, Route, Update
from felix_py.refs import RouteRef
from policy.model import Family
from tests.support.isolate import new_netns, run, veth
from tests.support.thorough import examples

pytestmark = pytest.mark.root

PREFIX = {Family.V4: "10.244.7.0/24", Family.V6: "fd44:7::/64"}
GATEWAYS = {Family.V4: ("192.0.2.2", "192.0.2.3"), Family.V6: ("fd02::2", "fd02::3")}
PODS, LEARNED = 88, 89
ROUTE_GROUPS = 1 << 6 | 1 << 10
"""RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE."""
Found = dict[int, tuple[int, str]]
"""Metric -> protocol and gateway."""

both = pytest.mark.parametrize("family", list(Family), ids=str)


def wanted(family: Family, metric: int, *, hop: int = 0, protocol: int = LEARNED) -> Route:
    key = RouteRef(PREFIX[family], protocol)
    return Route(key, next_hops=(NextHop(GATEWAYS[family][hop], "up0"),), metric=metric)


def kernel(family: Family) -> Found:
    """The routes to the prefix; the metric of one made without any is 0."""
    shown = json.loads(run("ip", "-j", f"-{int(family)}", "route", "show", "exact", PREFIX[family]))
    known = {"kernel": 2, "static": 4}
    return {
        0 if route.get("metric", 0) in (0, 1024) else route["metric"]: (
            known.get(route["protocol"]) or int(route["protocol"]),
            route.get("gateway", ""),
        )
        for route in shown
    }


def plant(family: Family, metric: int, protocol: int, hop: int = 0) -> None:
    """A route that somebody else has made."""
    more = ("metric", str(metric)) if metric else ()
    via = ("via", GATEWAYS[family][hop], "dev", "up0", "proto", str(protocol))
    run("ip", f"-{int(family)}", "route", "add", PREFIX[family], *via, *more)


def unplant(family: Family, metric: int) -> None:
    run("ip", f"-{int(family)}", "route", "del", PREFIX[family], "proto", "4", "metric", str(metric))


@pytest.fixture
def routes(netns: object) -> Iterator[Routes]:
    veth("up0", "up1", "192.0.2.1/24", "fd02::1/64")
    routes = Routes(list(Family))
    routes.load()
    yield routes
    routes.close()


@both
def test_a_metric_is_written_read_back_and_held(routes: Routes, family: Family) -> None:
    route = wanted(family, 77)
    routes.route(route.key, route)
    assert not routes.write().failures
    assert kernel(family) == {77: (LEARNED, GATEWAYS[family][0])}
    routes.load()
    assert routes.take_drift() == []
    held = routes.hold(Update()).routes[route.key]
    assert held is not None
    assert held.metric == 77
    routes.update(Update(routes={route.key: held}))
    assert routes.write().writes == 0


@both
@pytest.mark.parametrize(("before", "after"), [(0, 77), (77, 0), (77, 2000), (2000, 77), (0, 4000)])
def test_the_new_route_is_there_before_the_old_one_goes(
    routes: Routes, family: Family, before: int, after: int
) -> None:
    routes.route(wanted(family, before).key, wanted(family, before))
    routes.write()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as events:
        events.bind((0, ROUTE_GROUPS))
        routes.route(wanted(family, after).key, wanted(family, after, hop=1))
        assert not routes.write().failures
        told = [struct.unpack_from("=H", events.recv(4096, socket.MSG_DONTWAIT), 4)[0] for _ in range(2)]
    assert told == [RTM_NEWROUTE, RTM_DELROUTE]
    assert kernel(family) == {after: (LEARNED, GATEWAYS[family][1])}


@both
def test_a_restart_finds_routes_of_any_metric(routes: Routes, family: Family) -> None:
    for metric in (0, 77, 2000):
        plant(family, metric, LEARNED)
    routes.load()
    assert kernel(family).keys() == {0, 77, 2000}, "nothing goes before it is known what is wanted"
    routes.remove(Sweep.ALL_BUT_LEARNED)
    assert kernel(family).keys() == {0, 77, 2000}
    routes.remove(Sweep.ALL)
    assert kernel(family) == {}


@both
def test_a_crash_between_the_two_leaves_one_of_them(routes: Routes, family: Family) -> None:
    plant(family, 0, LEARNED)
    plant(family, 77, LEARNED, hop=1)
    routes.route(wanted(family, 77).key, wanted(family, 77, hop=1))
    routes.load()
    assert not routes.write().failures
    assert kernel(family) == {77: (LEARNED, GATEWAYS[family][1])}
    assert routes.take_drift() == []


@both
def test_a_second_one_made_later_is_drift(routes: Routes, family: Family) -> None:
    routes.route(wanted(family, 77).key, wanted(family, 77))
    routes.write()
    plant(family, 5, LEARNED, hop=1)
    routes.load()
    assert [drift.how for drift in routes.take_drift()] == ["there is another one with another metric"]
    assert not routes.write().failures
    assert kernel(family) == {77: (LEARNED, GATEWAYS[family][0])}


@both
def test_somebody_elses_route_with_the_new_metric_wins(routes: Routes, family: Family) -> None:
    routes.route(wanted(family, 0).key, wanted(family, 0))
    routes.write()
    plant(family, 77, 4, hop=1)
    routes.route(wanted(family, 77).key, wanted(family, 77))
    (failure,) = routes.write().failures
    assert "that is not ours" in failure.reason or "somebody else" in failure.reason
    assert kernel(family) == {77: (4, GATEWAYS[family][1])}
    unplant(family, 77)
    assert not routes.write().failures
    assert kernel(family) == {77: (LEARNED, GATEWAYS[family][0])}


# --- any order of events ---------------------------------------------------------------------------------


@dataclass
class Model:
    """What must be in the kernel, by the slowest means: the wanted routes, and those of others."""

    wanted: dict[int, Route] = field(default_factory=dict)
    foreign: set[int] = field(default_factory=set)

    def expected(self, family: Family) -> list[Found]:
        others = dict.fromkeys(self.foreign, (4, GATEWAYS[family][0]))
        # Of our two protocols the pods' counts; a learned one that is in its place stays while that is refused.
        ours = [self.wanted[protocol] for protocol in sorted(self.wanted)]
        free = [route for route in ours if route.metric not in self.foreign]
        possible = [{route.metric: (route.key.protocol, route.next_hops[0].gateway)} for route in free]
        if ours and ours[0] in free:
            return [others | possible[0]]
        return [others, *(others | one for one in possible)]


METRICS = st.sampled_from([0, 5, 77, 2000])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), METRICS, st.integers(0, 1)),
        st.tuples(st.just("forget"), st.sampled_from([PODS, LEARNED]), st.just(0)),
        st.tuples(st.just("pod"), st.just(0), st.integers(0, 1)),
        st.tuples(st.just("foreign"), METRICS, st.just(0)),
        st.tuples(st.just("stray"), METRICS, st.integers(0, 1)),
        st.tuples(st.sampled_from(["write", "load", "restart"]), st.just(0), st.just(0)),
    ),
    max_size=12,
)


def step(routes: Routes, model: Model, family: Family, what: str, number: int, hop: int) -> None:
    if what in ("learn", "pod"):
        protocol = LEARNED if what == "learn" else PODS
        model.wanted[protocol] = wanted(family, number, hop=hop, protocol=protocol)
        routes.route(model.wanted[protocol].key, model.wanted[protocol])
    elif what == "forget":
        model.wanted.pop(number, None)
        routes.route(RouteRef(PREFIX[family], number), None)
    elif what in ("foreign", "stray") and number not in kernel(family):
        plant(family, number, 4 if what == "foreign" else LEARNED, hop)
        model.foreign |= {number} if what == "foreign" else set()
    elif what == "write":
        routes.write()


@both
@settings(max_examples=examples(25), deadline=None)
@given(steps=STEPS)
def test_in_the_end_there_is_one_of_ours_whatever_happened(
    family: Family, steps: list[tuple[str, int, int]]
) -> None:
    with new_netns():
        veth("up0", "up1", "192.0.2.1/24", "fd02::1/64")
        routes, model = Routes([family]), Model()
        try:
            routes.load()
            for what, number, hop in steps:
                step(routes, model, family, what, number, hop)
                if what == "restart":
                    routes.close()
                    routes = Routes([family])
                    for route in model.wanted.values():
                        routes.route(route.key, route)
                if what in ("load", "restart"):
                    routes.load()
            routes.load()
            # What is not wanted any more goes first, as in an apply; what gave way comes back then.
            for _ in range(2):
                routes.remove(Sweep.ALL)
                routes.write()
            assert kernel(family) in model.expected(family)
        finally:
            routes.close()
