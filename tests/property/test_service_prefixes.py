"""Service prefixes against a slow oracle, written from the prose of Calico and Kubernetes."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.announcement import GRACEFUL_SHUTDOWN
from bgp.resources import BGPConfiguration, PrefixAdvertisement
from bgp.services import Attributes, Drain, Endpoints, Ranges, Service, ServiceIndex
from tests.support.thorough import examples

ADDRESSES = ("10.96.0.1", "10.96.0.9", "192.0.2.7", "fd00:96::1")
CIDRS = ("10.96.0.0/16", "10.96.0.9/32", "192.0.2.7/32", "fd00:96::/112", "fd00:97::1/128")
NAMES = ("a", "b")

some_addresses = st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=3, unique=True).map(tuple)
some_cidrs = st.none() | st.lists(st.sampled_from(CIDRS), min_size=2, max_size=4, unique=True).map(tuple)
services = st.builds(
    Service,
    st.just("ns"),
    st.sampled_from(NAMES),
    local=st.booleans(),
    cluster_ips=some_addresses,
    external_ips=some_addresses,
    load_balancer_ips=some_addresses,
)
slices = st.builds(
    Endpoints,
    st.just("ns"),
    st.sampled_from(("s1", "s2")),
    st.sampled_from(NAMES),
    st.sampled_from((4, 4, 6, 0)),
    *[st.sampled_from((False, False, True))] * 4,
)
configurations = st.builds(
    BGPConfiguration,
    name=st.just("default"),
    service_cluster_ips=some_cidrs,
    service_external_ips=some_cidrs,
    service_load_balancer_ips=some_cidrs,
    service_load_balancer_aggregation=st.sampled_from(("", "Enabled", "Disabled")),
)
FULL = BGPConfiguration(
    name="default", service_cluster_ips=CIDRS, service_external_ips=CIDRS, service_load_balancer_ips=CIDRS
)


def inside(address: str, cidrs: Iterable[str]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """The CIDRs that an address lies in."""
    found = [ipaddress.ip_network(cidr) for cidr in cidrs]
    return [network for network in found if ipaddress.ip_address(address) in network]


def wanted(
    config: BGPConfiguration,
    objects: Iterable[Service],
    endpoints: Iterable[Endpoints],
    excluded: bool,
    drain: Drain,
) -> set[str]:
    """Every rule as its own sentence."""
    found: set[str] = set()
    if excluded:
        return found
    kinds = {
        "cluster_ips": (config.service_cluster_ips or (), True),
        "external_ips": (config.service_external_ips or (), True),
        "load_balancer_ips": (
            config.service_load_balancer_ips or (),
            config.service_load_balancer_aggregation != "Disabled",
        ),
    }
    for ranges, aggregated in kinds.values():
        for cidr in ranges:
            network = ipaddress.ip_network(cidr)
            if aggregated and network.num_addresses > 1 and drain is not Drain.WITHDRAWN:
                found.add(cidr)
    for service in objects:
        for kind, (ranges, aggregated) in kinds.items():
            for address in getattr(service, kind):
                around = inside(address, ranges)
                version = ipaddress.ip_address(address).version
                its = [e for e in endpoints if e.service == service.name and e.version == version]
                if not around:
                    continue
                ready_here = any(e.ready_here for e in its)
                ready_elsewhere = any(e.ready_elsewhere for e in its)
                ends_here = any(e.terminating_here for e in its)
                ends_elsewhere = any(e.terminating_elsewhere for e in its)
                if service.local:
                    yes = ready_here or (ends_here and not ready_elsewhere)
                    if drain is Drain.WITHDRAWN and ready_elsewhere:
                        yes = False
                else:
                    alone = not aggregated or any(network.num_addresses == 1 for network in around)
                    some = ready_here or ready_elsewhere or ends_here or ends_elsewhere
                    yes = alone and some and drain is not Drain.WITHDRAWN
                if yes:
                    found.add(f"{address}/{32 if version == 4 else 128}")
    return found


class Cluster:
    """What there is now, and an index that is told of each change."""

    def __init__(self) -> None:
        self.index = ServiceIndex()
        self.services: dict[tuple[str, str], Service] = {}
        self.slices: dict[tuple[str, str], Endpoints] = {}
        self.config = BGPConfiguration(name="default")
        self.excluded, self.drain = False, Drain.NO

    def perform(self, step: object) -> None:
        match step:
            case Service():
                self.services[step.key] = step
                self.index.set_service(step.key, step)
            case Endpoints():
                self.index.set_endpoints(self.slices.get(step.key), step)
                self.slices[step.key] = step
            case BGPConfiguration():
                self.config = step
                self._configure()
            case ("node", bool(excluded), Drain() as drain):
                self.excluded, self.drain = excluded, drain
                self._configure()
            case ("delete service", str(name)):
                self.services.pop(("ns", name), None)
                self.index.set_service(("ns", name), None)
            case ("delete slice", str(name)):
                self.index.set_endpoints(self.slices.pop(("ns", name), None), None)

    def _configure(self) -> None:
        self.index.configure(Ranges.of(self.config), excluded=self.excluded, drain=self.drain)

    def oracle(self) -> set[str]:
        return wanted(self.config, self.services.values(), [*self.slices.values()], self.excluded, self.drain)


steps = st.one_of(
    services,
    services,
    slices,
    slices,
    configurations,
    st.tuples(st.just("node"), st.sampled_from((False, False, True)), st.sampled_from(Drain)),
    st.tuples(st.just("delete service"), st.sampled_from(NAMES)),
    st.tuples(st.just("delete slice"), st.sampled_from(("s1", "s2"))),
)


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(steps, min_size=3, max_size=20))
def test_after_each_change_the_oracle_s_prefixes(story: list[object]) -> None:
    cluster = Cluster()
    for step in (FULL, *story):
        cluster.perform(step)
        assert cluster.index.prefixes() == cluster.oracle()


@settings(max_examples=examples(60), deadline=None)
@given(
    configurations,
    st.lists(services, max_size=2, unique_by=lambda one: one.key),
    st.lists(slices, max_size=3, unique_by=lambda one: one.key),
    st.randoms(use_true_random=False),
)
def test_any_order_ends_the_same(
    config: BGPConfiguration, objects: list[Service], endpoints: list[Endpoints], random: object
) -> None:
    story: list[object] = [config, *objects, *endpoints]
    ends = set()
    for _ in range(4):
        random.shuffle(story)  # type: ignore[attr-defined]
        cluster = Cluster()
        for step in story:
            cluster.perform(step)
        ends.add(cluster.index.prefixes())
    assert len(ends) == 1


COMMUNITIES = {"name": "65000:7", "large": "65000:1:2"}
advertisements = st.lists(
    st.builds(
        PrefixAdvertisement,
        st.sampled_from(("10.96.0.0/16", "10.0.0.0/8", "10.96.0.1/32", "0.0.0.0/0", "fd00::/16")),
        st.lists(st.sampled_from(("name", "large", "65000:1", "65000:9:9", "nobody")), max_size=3).map(tuple),
        st.none() | st.integers(0, 300),
        st.none() | st.integers(0, 300),
    ),
    max_size=4,
    unique_by=lambda one: one.cidr,
).map(tuple)


@settings(max_examples=examples(100), deadline=None)
@given(
    advertisements,
    st.sampled_from(("10.96.0.0/16", "10.96.0.1/32", "10.0.0.0/8", "fd00:1::/64")),
    st.sampled_from(Drain),
)
def test_attributes(entries: tuple[PrefixAdvertisement, ...], prefix: str, drain: Drain) -> None:
    network = ipaddress.ip_network(prefix)
    covering = [
        entry
        for entry in entries
        if ipaddress.ip_network(entry.cidr).version == network.version
        and network.subnet_of(ipaddress.ip_network(entry.cidr))  # type: ignore[arg-type]
    ]
    values = {COMMUNITIES.get(one, one) for entry in covering for one in entry.communities} - {"nobody"}
    covering.sort(key=lambda entry: ipaddress.ip_network(entry.cidr).prefixlen)
    med = preference = None
    for entry in covering:
        med = entry.med if entry.med is not None else med
        preference = entry.local_preference if entry.local_preference is not None else preference
    if drain is not Drain.NO:
        values.add(GRACEFUL_SHUTDOWN)
        preference = 0
    config = BGPConfiguration(name="default", communities=COMMUNITIES, prefix_advertisements=entries)
    found = Attributes(config, drain).announcement(prefix)
    assert (found.prefix, found.med, found.local_preference) == (prefix, med, preference)
    assert {*found.communities, *found.large_communities} == values
    assert all(one.count(":") == 1 for one in found.communities)
    assert list(found.communities) == sorted(found.communities)


@pytest.mark.parametrize("drain", Drain)
@pytest.mark.parametrize("aggregation", ["Enabled", "Disabled"])
@pytest.mark.parametrize("local", [True, False])
def test_every_sort_of_endpoint(drain: Drain, aggregation: str, local: bool) -> None:
    cluster = Cluster()
    cluster.perform(replace(FULL, service_load_balancer_aggregation=aggregation))
    cluster.perform(("node", False, drain))
    cluster.perform(Service("ns", "a", local, *[("10.96.0.1", "10.96.0.9", "fd00:96::1")] * 3))
    seen = set()
    for flags in itertools.product((False, True), repeat=4):
        for version in (4, 6, 0):
            cluster.perform(Endpoints("ns", "s1", "a", version, *flags))
            assert cluster.index.prefixes() == cluster.oracle()
            seen.add(cluster.index.prefixes())
    assert len(seen) > (1 if drain is not Drain.WITHDRAWN or local else 0)


def test_two_services_with_one_address() -> None:
    cluster = Cluster()
    cluster.perform(BGPConfiguration(name="default", service_external_ips=("192.0.2.7/32",)))
    for name in NAMES:
        cluster.perform(Service("ns", name, external_ips=("192.0.2.7",)))
        cluster.perform(Endpoints("ns", f"of-{name}", name, 4, ready_elsewhere=True))
    cluster.perform(("delete service", "a"))
    assert cluster.index.prefixes() == {"192.0.2.7/32"}
    cluster.perform(("delete service", "b"))
    assert cluster.index.prefixes() == set()


def test_a_slice_that_changes_its_service() -> None:
    cluster = Cluster()
    cluster.perform(BGPConfiguration(name="default", service_external_ips=("192.0.2.0/24",)))
    for name, address in (("a", "192.0.2.1"), ("b", "192.0.2.2")):
        cluster.perform(Service("ns", name, local=True, external_ips=(address,)))
    one = Endpoints("ns", "s1", "a", 4, ready_here=True)
    cluster.perform(one)
    assert cluster.index.prefixes() == {"192.0.2.0/24", "192.0.2.1/32"}
    cluster.perform(replace(one, service="b"))
    assert cluster.index.prefixes() == {"192.0.2.0/24", "192.0.2.2/32"}


def test_nobody_asks_for_endpoints_as_long_as_ranges_will_do() -> None:
    cluster = Cluster()
    cluster.perform(BGPConfiguration(name="default", service_cluster_ips=("10.96.0.0/16",)))
    cluster.perform(Service("ns", "a", cluster_ips=("10.96.0.1",)))
    cluster.perform(Service("ns", "b", local=True, cluster_ips=("192.0.2.1",)))
    assert not cluster.index.needs_endpoints
    cluster.perform(Service("ns", "b", local=True, cluster_ips=("10.96.0.9",)))
    assert cluster.index.needs_endpoints
