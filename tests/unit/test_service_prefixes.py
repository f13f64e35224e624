"""What a node announces: pods' prefixes, Services and static prefixes, and how a drain takes it away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from bgp.announcement import GRACEFUL_SHUTDOWN, Announcement
from bgp.resources import BGPConfiguration, PrefixAdvertisement
from bgp.services import Drain, Endpoints, Service
from felix_py.agent.service_prefixes import GRACE, ServicePrefixes
from felix_py.layout import EXCLUDED
from tests.support.services import Objects

OWN = ("10.1.0.0/24",)
CONFIG = BGPConfiguration(
    name="default", service_cluster_ips=("10.96.0.0/16",), service_load_balancer_ips=("192.0.2.0/24",)
)
RANGES = {"10.96.0.0/16", "192.0.2.0/24"}
WEB = Service("shop", "web", True, ("10.96.0.1",), (), ("192.0.2.7",))
HERE = Endpoints("shop", "web-1", "web", 4, ready_here=True)
BOTH = replace(HERE, ready_elsewhere=True)


class Clock:
    """Timers that the test lets expire."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[float, Callable[[], None]]] = {}
        self._next = 0

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self._next += 1
        self.running[self._next] = (seconds, call)
        return Timer(self, self._next)

    def expire(self) -> None:
        ((number, (seconds, call)),) = self.running.items()
        assert seconds == GRACE
        del self.running[number]
        call()


class Timer:
    def __init__(self, clock: Clock, number: int) -> None:
        self._clock, self._number = clock, number

    def cancel(self) -> None:
        self._clock.running.pop(self._number, None)


class Rig:
    def __init__(self) -> None:
        self.objects, self.clock = Objects(), Clock()
        self.calls = 0
        self.part = ServicePrefixes(self.objects, self._changed, self.clock.later)

    def _changed(self) -> None:
        self.calls += 1

    def now(self) -> dict[str, Announcement]:
        return self.part.announcements(OWN)

    def started(self, *found: Service | Endpoints, config: BGPConfiguration = CONFIG, drain: str = "") -> Rig:
        self.part.configure(config)
        self.part.set_node((), drain)
        self.objects.put(*found)
        self.objects.end_list()
        return self


def plain(*prefixes: str) -> dict[str, Announcement]:
    return {prefix: Announcement(prefix) for prefix in prefixes}


def shut(*prefixes: str) -> dict[str, Announcement]:
    return {p: Announcement(p, local_preference=0, communities=(GRACEFUL_SHUTDOWN,)) for p in prefixes}


def test_without_service_ranges_nobody_watches_services() -> None:
    rig = Rig()
    rig.part.configure(BGPConfiguration(name="default", static_prefixes=("198.51.100.0/24",)))
    assert not rig.part.known, "the Node is not known"
    rig.part.set_node((), "")
    assert rig.part.known
    assert rig.objects.wanted == []
    assert rig.now() == plain(*OWN, "198.51.100.0/24")


def test_pools_for_load_balancers_are_ranges() -> None:
    rig = Rig()
    rig.part.configure(BGPConfiguration(name="default"))
    rig.part.set_node((), "")
    rig.part.set_pools(None)
    assert not rig.part.known, "an earlier agent may have announced a pool"
    rig.part.set_pools(())
    assert rig.part.known
    assert rig.objects.wanted == []
    rig.part.set_pools(("192.0.2.0/24", "203.0.113.0/24"))
    assert rig.objects.wanted == [False]
    rig.objects.put(WEB, HERE)
    assert rig.now() == plain(*OWN, "192.0.2.0/24", "203.0.113.0/24", "192.0.2.7/32")
    rig.part.configure(CONFIG)
    assert rig.now() == plain(*OWN, *RANGES, "203.0.113.0/24", "10.96.0.1/32", "192.0.2.7/32")
    rig.part.set_pools(())
    assert rig.now() == plain(*OWN, *RANGES, "10.96.0.1/32", "192.0.2.7/32")


def test_ranges_and_local_addresses() -> None:
    rig = Rig()
    rig.part.configure(CONFIG)
    rig.part.set_node((), "")
    assert rig.objects.wanted == [False, False]
    assert not rig.part.known, "an earlier agent may have announced more"
    rig.objects.put(WEB)
    assert rig.objects.wanted[-1], "endpoints are asked for before Services count as complete"
    rig.objects.put(HERE)
    before = rig.calls
    rig.objects.end_list()
    assert rig.calls > before
    assert rig.part.known
    assert rig.now() == plain(*OWN, *RANGES, "10.96.0.1/32", "192.0.2.7/32")
    assert rig.part.ranges() == tuple(sorted(RANGES))
    rig.objects.put(replace(HERE, ready_here=False, ready_elsewhere=True))
    assert rig.now() == plain(*OWN, *RANGES)
    rig.objects.complete = False  # slices are listed late, for a Service that came late
    assert rig.part.known


def test_the_attributes_are_of_all_prefixes() -> None:
    advertisement = PrefixAdvertisement("10.0.0.0/8", ("blue",), med=7)
    config = replace(CONFIG, communities={"blue": "65000:9"}, prefix_advertisements=(advertisement,))
    rig = Rig().started(config=config)
    assert rig.now()["10.1.0.0/24"] == Announcement("10.1.0.0/24", med=7, communities=("65000:9",))
    assert rig.now()["10.96.0.0/16"].communities == ("65000:9",)
    assert rig.now()["192.0.2.0/24"] == Announcement("192.0.2.0/24")
    rig.part.configure(CONFIG)
    assert rig.now() == plain(*OWN, *RANGES)


def test_an_excluded_node_announces_its_pods_alone() -> None:
    rig = Rig().started(WEB, HERE)
    rig.part.set_node([("other", "x"), EXCLUDED], "")
    assert rig.now() == plain(*OWN)
    assert rig.part.ranges() == tuple(sorted(RANGES)), "nobody's route in there is learned all the same"
    rig.part.set_node([(EXCLUDED[0], "")], "")
    assert rig.now() == plain(*OWN, *RANGES, "10.96.0.1/32", "192.0.2.7/32")


def test_a_drain_asks_first_and_withdraws_later() -> None:
    rig = Rig().started(WEB, BOTH, config=replace(CONFIG, static_prefixes=("198.51.100.0/24",)))
    everything = {*OWN, *RANGES, "10.96.0.1/32", "192.0.2.7/32", "198.51.100.0/24"}
    rig.part.set_node((), "true")
    assert rig.now() == shut(*everything)
    assert rig.part.drained().stage is Drain.GRACEFUL
    rig.clock.expire()
    assert rig.now() == shut(*OWN), "pods are still there"
    assert (rig.part.drained().asked, rig.part.drained().stage) == ("true", Drain.WITHDRAWN)
    rig.part.set_node((), "another time")
    assert rig.part.drained().stage is Drain.WITHDRAWN, "it is asked for again, and that is so already"
    rig.part.set_node((), "")
    assert rig.now() == plain(*everything)


def test_the_only_endpoints_stay_reachable_until_others_are_ready() -> None:
    rig = Rig().started(WEB, HERE)
    rig.part.set_node((), "true")
    rig.clock.expire()
    assert rig.now() == shut(*OWN, "10.96.0.1/32", "192.0.2.7/32")
    assert rig.part.drained().kept == ("10.96.0.1/32", "192.0.2.7/32")
    rig.objects.put(BOTH)
    assert rig.now() == shut(*OWN)
    assert rig.part.drained().kept == ()


def test_a_drain_that_is_called_off_withdraws_nothing() -> None:
    rig = Rig().started()
    rig.part.set_node((), "true")
    rig.part.set_node((), "")
    assert not rig.clock.running
    assert rig.now() == plain(*OWN, *RANGES)


def test_an_agent_that_starts_on_a_drained_node_does_not_come_back_for_a_while() -> None:
    rig = Rig().started(WEB, BOTH, drain="true")
    assert rig.now() == shut(*OWN)
    assert not rig.clock.running


def test_what_is_no_cidr_changes_nothing() -> None:
    rig = Rig().started()
    for config in (
        replace(CONFIG, service_external_ips=("nonsense",)),
        replace(CONFIG, static_prefixes=("nonsense",)),
    ):
        with pytest.raises(ValueError, match="nonsense"):
            rig.part.configure(config)
    assert rig.now() == plain(*OWN, *RANGES)
