"""Which addresses Services of type LoadBalancer get out of the pools for them. Pure.

The truth is the Services' own status: what an address is given to is looked up there, so a controller that starts
anew, or two at once, need nothing else. Of two Services that have one address the older keeps it. An address is
ours only inside an IPPool with ``allowedUses: [LoadBalancer]``; entries of a status that are not stay untouched.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct, field

from bgp import selector
from bgp.prefixes import version
from felix_py.ipam.pool import Pool, address_number, address_text
from felix_py.ipam.pools import ends, pool_of, reserved_in
from felix_py.ipam.resources import AllowedUse, AssignmentMode, IPPool, IPReservation
from felix_py.layout import FOREIGN_LOAD_BALANCER_IPS, LOAD_BALANCER_IPS
from felix_py.records import LoadBalancer
from policy.model import Labels
from policy.syntax import canonical_address, shown

CLASS = "felixpy.io/bgp"
"""The ``loadBalancerClass`` of Services that nobody else may serve. Those without a class are served, too."""

Key = tuple[str, str]
"""Namespace and name of a Service."""

_selector = lru_cache(maxsize=1 << 8)(selector.parse)


class Refusal(Struct, frozen=True):
    """Why a Service lacks an address, as an Event's reason (one word) and text."""

    reason: str
    text: str


class Usage(Struct, frozen=True):
    """Addresses of a pool that Services have or that are kept from them, and those that can be given out."""

    allocated: int
    free: int


class Plan(Struct):
    """``ingress``: the addresses of ours that each Service must have, where that is not what it has. ``refused``:
    what each Service cannot get. ``usage``: by name of the pool, with what the plan gives."""

    ingress: dict[Key, tuple[str, ...]] = field(default_factory=dict)
    refused: dict[Key, tuple[Refusal, ...]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)


def pools_for_services(pools: Iterable[IPPool]) -> tuple[IPPool, ...]:
    """The pools that are for Services alone, by name. One that is for pods as well is not used: which of its
    addresses pods have, nodes know alone."""
    return tuple(sorted((p for p in pools if p.allowed_uses == {AllowedUse.LOAD_BALANCER}), key=lambda p: p.name))


def announced(pools: Iterable[IPPool]) -> tuple[str, ...]:
    """The CIDRs of the pools for Services that BGP announces, also of disabled ones: Services have addresses."""
    return tuple(pool.cidr for pool in pools_for_services(pools) if not pool.disable_bgp_export)


def asked_addresses(service: LoadBalancer, *, foreign: bool) -> dict[int, str]:
    """The addresses that a Service asks for, by IP version.

    The first of our annotation, the foreign ones and ``spec.loadBalancerIP`` counts; each is a list as JSON or
    with commas. Raises ValueError for what is no address, or two of a family; the message names the field.
    """
    given = dict(service.annotations)
    names = (LOAD_BALANCER_IPS, *(FOREIGN_LOAD_BALANCER_IPS if foreign else ()))
    where, text = next(
        ((name, given[name]) for name in names if given.get(name)), ("spec.loadBalancerIP", service.asked)
    )
    found: dict[int, str] = {}
    for one in _listed(where, text):
        try:
            address = canonical_address(one)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if (family := version(address)) in found:
            raise ValueError(
                f"{where}: {found[family]} and {address} are both IPv{family}; one of each family can be had"
            )
        found[family] = address
    return found


def _listed(where: str, text: str) -> list[str]:
    if not text.lstrip().startswith("["):
        return [one.strip() for one in text.split(",") if one.strip()]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{where}: {shown(text)} is not a list of addresses")
    return found


def plan(
    services: Iterable[LoadBalancer],
    pools: Iterable[IPPool],
    reservations: Sequence[IPReservation],
    namespaces: Mapping[str, Labels],
    *,
    used: Collection[str] = (),
    foreign: bool = False,
) -> Plan:
    """What each Service must have.

    A Service keeps what it has, whatever pools say by now, unless an older one has it, too, or it asks for
    another one that it can get. Then those that ask for addresses get them, then the others the lowest free ones,
    each time the oldest Service first. An address that any Service has at present is not free, also where this
    plan takes it away: it is given out once it is seen to be free.

    Args:
        services: all Services.
        pools: all that can be used; they do not overlap.
        reservations: their addresses are only for who asks for them.
        namespaces: name -> labels.
        used: further addresses that must not be given out, such as those of nodes.
        foreign: whether other projects' annotations count.
    """
    return _Planner(services, pools_for_services(pools), reservations, namespaces, used, foreign).plan()


class _Planner:
    def __init__(
        self,
        services: Iterable[LoadBalancer],
        pools: Sequence[IPPool],
        reservations: Sequence[IPReservation],
        namespaces: Mapping[str, Labels],
        used: Iterable[str],
        foreign: bool,
    ) -> None:
        self._services = sorted(services, key=lambda one: one.age)
        self._pools = pools
        self._reservations = reservations
        self._namespaces = namespaces
        self._foreign = foreign
        self._taken: dict[str, _Holder] = {}
        for address in used:
            self._take(address, _Holder(("", ""), "in use in the cluster"))
        self._holders: dict[str, Key] = {}
        self._free = {pool.name: _Free(pool, reservations) for pool in pools}
        self._result = Plan()
        self._refused: dict[Key, list[Refusal]] = {}

    def plan(self) -> Plan:
        for service in self._services:
            for address in service.other_addresses:
                self._take(address, _Holder(service.key, f"a clusterIP or externalIP of {_named(service)}"))
        for service in reversed(self._services):
            for address in self._ours(service):
                self._holders[address] = service.key
                self._give(address, service)
        managed = [one for one in self._services if self._is_managed(one)]
        held = {one.key: self._kept(one) for one in managed}
        asked = {one.key: self._asked(one, held[one.key]) for one in managed}
        for service in managed:
            self._give_lowest(service, held[service.key], asked[service.key])
            wanted = tuple(held[service.key].values())
            if wanted != tuple(self._ours(service)):
                self._result.ingress[service.key] = wanted
        for service in self._services:
            if not service.wanted and self._ours(service) and not self._goes_with(service):
                self._result.ingress[service.key] = ()
        self._result.refused = {key: tuple(found) for key, found in self._refused.items()}
        self._result.usage = {pool.name: self._usage(pool) for pool in self._pools}
        return self._result

    def _take(self, address: str, holder: _Holder) -> None:
        if pool_of(self._pools, address) is not None:
            self._taken.setdefault(address, holder)

    def _give(self, address: str, service: LoadBalancer) -> None:
        self._taken[address] = _Holder(service.key, f"the address of {_named(service)}")

    def _goes_with(self, service: LoadBalancer) -> bool:
        """Whether somebody else is responsible for what the Service's status says."""
        return service.load_balancer_class not in ("", CLASS)

    def _ours(self, service: LoadBalancer) -> list[str]:
        addresses = [one.address for one in service.ingress if one.address]
        return [address for address in addresses if pool_of(self._pools, address) is not None]

    def _is_managed(self, service: LoadBalancer) -> bool:
        if not service.wanted or self._goes_with(service):
            return False
        # Where anybody else has given it something, that is who serves it.
        return service.load_balancer_class == CLASS or not service.ingress or bool(self._ours(service))

    def _kept(self, service: LoadBalancer) -> dict[int, str]:
        """What the Service has and keeps, by IP version, in the order of its families."""
        kept: dict[int, str] = {}
        for address in self._ours(service):
            family = version(address)
            if self._holders[address] != service.key:
                older = "/".join(self._holders[address])
                text = f"{address} is the address of the older Service {older} as well, which keeps it"
                self._refuse(service, "AddressConflict", text)
            elif family in service.families:
                kept.setdefault(family, address)
        return kept

    def _asked(self, service: LoadBalancer, held: dict[int, str]) -> frozenset[int]:
        """Give a Service what it asks for; returns the IP versions of what it asks for."""
        try:
            wanted = asked_addresses(service, foreign=self._foreign)
        except ValueError as error:
            self._refuse(service, "AddressRefused", str(error))
            return frozenset(service.families)
        for family, address in wanted.items():
            if held.get(family) == address:
                continue
            if reason := self._why_not(service, family, address):
                kept = f"; it keeps {held[family]}" if family in held else ""
                self._refuse(service, "AddressRefused", f"{address} is asked for, but {reason}{kept}")
            else:
                held[family] = address
                self._give(address, service)
        return frozenset(wanted)

    def _why_not(self, service: LoadBalancer, family: int, address: str) -> str:
        if family not in service.families:
            return f"the Service has no IPv{family} among its ipFamilies"
        pool = pool_of(self._pools, address)
        if pool is None:
            return "no IPPool with allowedUses: [LoadBalancer] has it"
        if pool.disabled:
            return f"its IPPool {pool.name} is disabled"
        if not self._selects(pool, service):
            return f"its IPPool {pool.name} is not for the namespace {service.namespace}"
        holder = self._taken.get(address)
        if holder is not None and holder.key != service.key:
            return f"it is {holder.words}; addresses are not shared"
        return ""

    def _give_lowest(self, service: LoadBalancer, held: dict[int, str], asked: Collection[int]) -> None:
        foreign = {version(one.address) for one in service.ingress if one.address} - {
            version(address) for address in self._ours(service)
        }
        for family in service.families:
            if family in held or family in asked or family in foreign:
                continue
            pools = [pool for pool in self._pools if int(pool.family) == family and self._is_open(pool, service)]
            address = next(filter(None, (self._free[pool.name].lowest(self._taken) for pool in pools)), "")
            if address:
                held[family] = address
                self._give(address, service)
            elif pools:
                names = ", ".join(pool.name for pool in pools)
                self._refuse(service, "NoAddressLeft", f"no IPv{family} address is left in IPPool {names}")
            else:
                text = f"no IPPool for load balancers gives IPv{family} addresses to {service.namespace}"
                self._refuse(service, "NoPool", text)
        order = {family: index for index, family in enumerate(service.families)}
        for family in sorted(held, key=lambda one: order[one]):
            held[family] = held.pop(family)

    def _is_open(self, pool: IPPool, service: LoadBalancer) -> bool:
        automatic = pool.assignment_mode is AssignmentMode.AUTOMATIC
        return automatic and not pool.disabled and self._selects(pool, service)

    def _selects(self, pool: IPPool, service: LoadBalancer) -> bool:
        labels = dict(self._namespaces.get(service.namespace, ()))
        return _selector(pool.namespace_selector).matches(labels)

    def _refuse(self, service: LoadBalancer, reason: str, text: str) -> None:
        self._refused.setdefault(service.key, []).append(Refusal(reason, text))

    def _usage(self, pool: IPPool) -> Usage:
        usable = Pool.of(pool.cidr)
        taken = [address for address in self._taken if pool_of([pool], address) is not None]
        apart = sum(
            address_number(address)[1] in usable and not self._free[pool.name].is_reserved(address)
            for address in taken
        )
        size = usable.last - usable.first + 1
        return Usage(len(taken), size - reserved_in(pool.cidr, self._reservations) - apart)


class _Holder(Struct, frozen=True):
    """What has an address: the Service, if it is one, and words for people."""

    key: Key
    words: str


class _Free:
    """The free addresses of a pool, the lowest first; within one plan none becomes free."""

    def __init__(self, pool: IPPool, reservations: Iterable[IPReservation]) -> None:
        self._pool = Pool.of(pool.cidr)
        self._reserved = sorted(
            ends(cidr)
            for reservation in reservations
            for cidr in reservation.reserved_cidrs
            if version(cidr) == pool.family
        )
        self._addresses = self._walk()
        self._next = ""

    def _walk(self) -> Iterator[str]:
        number, end = self._pool.first, self._pool.last + 1
        for first, last in [*self._reserved, (end, end)]:
            for one in range(number, min(first, end)):
                yield address_text(self._pool.family, one)
            number = max(number, last + 1)

    def lowest(self, taken: Collection[str]) -> str:
        """The lowest address that is not taken, or an empty text."""
        while not self._next or self._next in taken:
            if (following := next(self._addresses, None)) is None:
                return ""
            self._next = following
        return self._next

    def is_reserved(self, address: str) -> bool:
        """Whether a reservation has the address."""
        _, number = address_number(address)
        return any(first <= number <= last for first, last in self._reserved)


def entries(service: LoadBalancer, addresses: Sequence[str], pools: Iterable[IPPool]) -> list[bytes]:
    """``status.loadBalancer.ingress`` of a Service that must have these addresses of ours, each entry as JSON.

    Entries that are not ours stay, unless the Service is of our class and gets an address of their family: nobody
    else gave it those.
    """
    ours = pools_for_services(pools)
    given = {version(address) for address in addresses} if service.load_balancer_class == CLASS else set()
    others = [
        one.raw
        for one in service.ingress
        if not one.address or (pool_of(ours, one.address) is None and version(one.address) not in given)
    ]
    return [*others, *(json.dumps({"ip": address, "ipMode": "VIP"}).encode() for address in addresses)]


def _named(service: LoadBalancer) -> str:
    return f"the Service {service.namespace}/{service.name}"
