"""Addresses of load balancers against a slow oracle, and what controllers with old copies make of a cluster."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from felix_py.ipam.load_balancers import CLASS, Plan, asked_addresses, entries, plan
from felix_py.ipam.resources import AllowedUse, AssignmentMode, IPPool, IPReservation
from felix_py.records import Ingress, LoadBalancer
from tests.support.thorough import examples

V4, V4_B, V6, OTHER = "192.0.2.0/29", "198.51.100.8/30", "fd00:77::/125", "203.0.113.0/29"
CIDRS = (V4, V4_B, V6)
ALL = [str(address) for cidr in (*CIDRS, OTHER) for address in ipaddress.ip_network(cidr)]
INSIDE = {cidr: {str(address) for address in ipaddress.ip_network(cidr)} for cidr in CIDRS}
BOTH = "192.0.2.3, fd00:77::3"
NAMESPACES = {"red": (("team", "red"),), "blue": ()}

some_pools = st.sets(st.sampled_from(CIDRS)).flatmap(
    lambda cidrs: st.tuples(
        *(
            st.builds(
                IPPool,
                name=st.just(f"p-{sorted(CIDRS).index(cidr)}"),
                cidr=st.just(cidr),
                block_size=st.just(32),
                namespace_selector=st.sampled_from(("all()", "all()", "team == 'red'")),
                disabled=st.sampled_from((False, False, True)),
                allowed_uses=st.sampled_from(
                    (frozenset({AllowedUse.LOAD_BALANCER}),) * 4 + (frozenset(AllowedUse),)
                ),
                assignment_mode=st.sampled_from((AssignmentMode.AUTOMATIC,) * 3 + (AssignmentMode.MANUAL,)),
            )
            for cidr in sorted(cidrs)
        )
    )
)
reservations = st.lists(st.sampled_from(("192.0.2.0/30", "192.0.2.4/32", "fd00:77::4/126")), max_size=2).map(
    lambda cidrs: [IPReservation("r", tuple(cidrs))]
)
addresses = st.sampled_from(ALL)


def entry(address: str) -> Ingress:
    return Ingress(address, f'{{"ip":"{address}"}}'.encode())


def service(number: int) -> st.SearchStrategy[LoadBalancer]:
    return st.builds(
        LoadBalancer,
        namespace=st.sampled_from(("red", "blue")),
        name=st.just(f"s{number}"),
        uid=st.just(f"u{number}"),
        created=st.sampled_from(("2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z")),
        wanted=st.sampled_from((True, True, True, False)),
        load_balancer_class=st.sampled_from(("", "", CLASS, "example.com/other")),
        families=st.sampled_from(((4,), (4,), (6,), (4, 6), (6, 4))),
        asked=st.sampled_from(("", "", "", *ALL, "192.0.2.3,fd00:77::3", "nonsense")),
        ingress=st.lists(addresses.map(entry), max_size=2, unique=True).map(tuple) | st.just(()),
        other_addresses=st.lists(addresses, max_size=1).map(tuple),
    )


clusters = st.integers(0, 5).flatmap(lambda number: st.tuples(*(service(n) for n in range(number))))


def in_pool(pools: Sequence[IPPool], address: str) -> IPPool | None:
    for pool in pools:
        if pool.allowed_uses == {AllowedUse.LOAD_BALANCER} and address in INSIDE[pool.cidr]:
            return pool
    return None


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def selects(pool: IPPool, one: LoadBalancer) -> bool:
    return pool.namespace_selector == "all()" or one.namespace == "red"


Key = tuple[str, str]


class Oracle:
    """What each Service of ours must have, by looking at every address for every Service."""

    def __init__(
        self, services: Sequence[LoadBalancer], pools: Sequence[IPPool], reserved: Sequence[IPReservation]
    ) -> None:
        self.services = sorted(services, key=lambda one: (one.created, one.namespace, one.name))
        self.pools = pools
        self.closed = {
            str(address)
            for one in reserved
            for cidr in one.reserved_cidrs
            for address in ipaddress.ip_network(cidr)
        }
        for cidr in CIDRS:
            network = ipaddress.ip_network(cidr)
            self.closed |= {str(network[0])} | ({str(network[-1])} if network.version == 4 else set())
        self.taken: dict[str, set[Key]] = {address: set() for address in ALL}
        for one in self.services:
            for address in (*one.other_addresses, *(there.address for there in one.ingress)):
                self.taken[address].add(one.key)

    def wanted(self) -> dict[Key, tuple[str, ...]]:
        managed = [one for one in self.services if self.is_managed(one)]
        have = {one.key: self.kept(one) for one in managed}
        for one in managed:
            self.ask(one, have[one.key])
        for one in managed:
            self.give(one, have[one.key])
        return {one.key: tuple(have[one.key][v] for v in one.families if v in have[one.key]) for one in managed}

    def ours(self, one: LoadBalancer) -> list[str]:
        return [there.address for there in one.ingress if in_pool(self.pools, there.address)]

    def is_managed(self, one: LoadBalancer) -> bool:
        if not one.wanted or one.load_balancer_class not in ("", CLASS):
            return False
        return one.load_balancer_class == CLASS or not one.ingress or bool(self.ours(one))

    def first(self, address: str) -> Key | None:
        """The oldest that has the address in its status."""
        held = [one.key for one in self.services if any(there.address == address for there in one.ingress)]
        return held[0] if held else None

    def kept(self, one: LoadBalancer) -> dict[int, str]:
        kept: dict[int, str] = {}
        for address in self.ours(one):
            version = version_of(address)
            if self.first(address) == one.key and version in one.families and version not in kept:
                kept[version] = address
        return kept

    def ask(self, one: LoadBalancer, have: dict[int, str]) -> None:
        for version, address in (wishes(one) or {}).items():
            pool = in_pool(self.pools, address)
            if version not in one.families or pool is None or pool.disabled or not selects(pool, one):
                continue
            if self.first(address) == one.key or not self.taken[address] - {one.key}:
                have[version] = address
                self.taken[address].add(one.key)

    def give(self, one: LoadBalancer, have: dict[int, str]) -> None:
        asked = wishes(one)
        own = {version_of(address) for address in self.ours(one)}
        foreign = {version_of(there.address) for there in one.ingress} - own
        for version in one.families:
            if version in have or asked is None or version in asked or version in foreign:
                continue
            for address in ALL:
                if version_of(address) == version and self.is_free(one, address):
                    have[version] = address
                    self.taken[address].add(one.key)
                    break

    def is_free(self, one: LoadBalancer, address: str) -> bool:
        pool = in_pool(self.pools, address)
        if pool is None or pool.disabled or pool.assignment_mode is AssignmentMode.MANUAL:
            return False
        return selects(pool, one) and address not in self.closed and not self.taken[address]


def wishes(one: LoadBalancer) -> dict[int, str] | None:
    try:
        return asked_addresses(one, foreign=False)
    except ValueError:
        return None


def result(found: Plan, one: LoadBalancer, pools: Sequence[IPPool]) -> tuple[str, ...]:
    now = tuple(there.address for there in one.ingress if in_pool(pools, there.address))
    return found.ingress.get(one.key, now)


@settings(max_examples=examples(1200), deadline=None)
@given(clusters, some_pools, reservations)
def test_everybody_gets_what_the_oracle_says(
    services: tuple[LoadBalancer, ...], pools: tuple[IPPool, ...], reserved: list[IPReservation]
) -> None:
    found = plan(services, pools, reserved, NAMESPACES)
    wanted = Oracle(services, pools, reserved).wanted()
    for one in services:
        if one.key in wanted:
            assert result(found, one, pools) == wanted[one.key], one.key
            assert bool(found.refused.get(one.key)) or len(wanted[one.key]) <= len(one.families)
        elif one.wanted or one.load_balancer_class not in ("", CLASS):
            assert one.key not in found.ingress, "it is somebody else's"
        else:
            assert not result(found, one, pools)
    for pool in pools:
        if pool.allowed_uses == {AllowedUse.LOAD_BALANCER}:
            size = ipaddress.ip_network(pool.cidr).num_addresses
            usage = found.usage[pool.name]
            assert 0 <= usage.free <= size - 1
            assert usage.allocated + usage.free <= size


def apply(one: LoadBalancer, given: tuple[str, ...], pools: Sequence[IPPool]) -> LoadBalancer:
    """The Service after the write."""
    known = {there.raw: there for there in one.ingress}
    raw = entries(one, given, pools)
    others = tuple(known[entry] for entry in raw if entry in known)
    version = str(int(one.resource_version) + 1)
    return replace(one, ingress=(*others, *map(entry, given)), resource_version=version)


@settings(max_examples=examples(240), deadline=None)
@given(st.integers(0, 1 << 40), st.integers(2, 6))
def test_two_controllers_with_old_copies_come_to_rest_without_a_double(seed: int, number: int) -> None:
    """Each write is of the version that was read; nothing else keeps two controllers apart."""
    chance = random.Random(seed)
    use = frozenset({AllowedUse.LOAD_BALANCER})
    pools = (
        IPPool(name="a", cidr=V4, block_size=32, allowed_uses=use),
        IPPool(name="b", cidr=V6, block_size=128, allowed_uses=use),
    )
    made = {
        f"s{n}": LoadBalancer(
            namespace="red",
            name=f"s{n}",
            created=f"2024-01-0{n + 1}T00:00:00Z",
            resource_version="1",
            wanted=True,
            families=chance.choice(((4,), (4, 6))),
            asked=chance.choice(("", "", "192.0.2.1", "192.0.2.2")),
        )
        for n in range(number)
    }
    now: dict[str, LoadBalancer] = {}
    copies: list[dict[str, LoadBalancer]] = [{}, {}]
    for turn in range(100):
        calm = turn >= 70
        if not calm and chance.random() < 0.2:
            name = chance.choice(sorted(made))
            if name in now and chance.random() < 0.5:
                del now[name]
            else:
                now.setdefault(name, made[name])
        copy = chance.choice(copies)
        if calm or chance.random() < 0.5:
            copy.clear()
            copy.update(now)
        for (_, name), given_ in plan(copy.values(), pools, [], NAMESPACES).ingress.items():
            if name in now and now[name].resource_version == copy[name].resource_version:
                now[name] = apply(now[name], given_, pools)
    held = [there.address for one in now.values() for there in one.ingress]
    assert len(held) == len(set(held))
    assert not plan(now.values(), pools, [], NAMESPACES).ingress, "it has not come to rest"
    for one in now.values():
        said = plan(now.values(), pools, [], NAMESPACES).refused.get(one.key, ())
        refused = {refusal.reason for refusal in said}
        assert len(one.ingress) == len(one.families) or refused & {"AddressRefused", "NoAddressLeft"}


@pytest.mark.parametrize(
    ("annotations", "asked", "foreign", "found"),
    [
        ((), "", False, {}),
        ((), "192.0.2.3", False, {4: "192.0.2.3"}),
        ((("felixpy.io/loadbalancer-ips", BOTH),), "192.0.2.4", False, {4: "192.0.2.3", 6: "fd00:77::3"}),
        ((("felixpy.io/loadbalancer-ips", '["192.0.2.3"]'),), "", False, {4: "192.0.2.3"}),
        ((("metallb.universe.tf/loadBalancerIPs", "192.0.2.3"),), "", False, {}),
        ((("metallb.universe.tf/loadBalancerIPs", "192.0.2.3"),), "", True, {4: "192.0.2.3"}),
        ((("projectcalico.org/loadBalancerIPs", '["fd00:77:0::3"]'),), "", True, {6: "fd00:77::3"}),
        ((("felixpy.io/loadbalancer-ips", "192.0.2.3,192.0.2.4"),), "", False, "both IPv4"),
        ((("felixpy.io/loadbalancer-ips", "[192.0.2.3]"),), "", False, "not a list of addresses"),
        ((), "example.com", False, "spec.loadBalancerIP: 'example.com' is not an IP address"),
    ],
)  # fmt: skip
def test_what_a_service_asks_for(
    annotations: tuple[tuple[str, str], ...], asked: str, foreign: bool, found: dict[int, str] | str
) -> None:
    one = LoadBalancer(namespace="a", name="b", annotations=annotations, asked=asked)
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found.replace("[", r"\[")):
            asked_addresses(one, foreign=foreign)
    else:
        assert asked_addresses(one, foreign=foreign) == found
