"""Which prefixes of Services this node announces, and with which attributes.

After Calico (confd, backends/calico/routes.go), but address by address: a range of BGPConfiguration is announced
as a whole by every node. An address of its own (/32, /128) is announced

- of a Service with ``externalTrafficPolicy: Local``, by the nodes that have an endpoint of it;
- of any other Service, by every node, if its range is not announced as a whole: a range of one address, or
  serviceLoadBalancerIPs while ``serviceLoadBalancerAggregation`` is ``Disabled``.

Which endpoints count is what kube-proxy's health check says (pkg/proxy/healthcheck, KEP-1669): a ready one; one
that terminates and still serves counts only while no other node has a ready one. So a node is left by the routers
before its last endpoint ends, and kube-proxy serves what is still under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import chain

from bgp.announcement import GRACEFUL_SHUTDOWN, Announcement
from bgp.prefixes import PrefixSet, canonical, parse
from bgp.resources import BGPConfiguration, PrefixAdvertisement, Problem

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Service:
    """A Service (core/v1), as far as BGP goes. Addresses are canonical texts; headless Services have none.

    ``local``: ``externalTrafficPolicy`` is ``Local``. ``load_balancer_ips`` are those of ``status.loadBalancer``
    to which packets come unchanged (``ipMode`` is not ``Proxy``).
    """

    namespace: str
    name: str
    local: bool = False
    cluster_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Endpoints:
    """An EndpointSlice (discovery.k8s.io/v1), reduced to what kinds of endpoints it has, and where.

    ``here`` is this node. ``terminating``: they terminate, but still serve. ``version``: 4, 6, or 0 for a slice
    of names. So a change of endpoints elsewhere is seldom a change of this record.
    """

    namespace: str
    name: str
    service: str
    version: int
    ready_here: bool = False
    ready_elsewhere: bool = False
    terminating_here: bool = False
    terminating_elsewhere: bool = False

    @property
    def key(self) -> Key:
        """Namespace and name of the slice."""
        return self.namespace, self.name

    @property
    def service_key(self) -> Key:
        """Namespace and name of its Service."""
        return self.namespace, self.service


class Drain(Enum):
    """How far a node that is being drained has come.

    NO: it is not. GRACEFUL: routers are asked to use other paths. WITHDRAWN: what other nodes announce as well is
    withdrawn.
    """

    NO = "no"
    GRACEFUL = "graceful"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Drained:
    """How far the drain of a node has come. ``asked``: the Node's annotation, ``taint``, or empty.

    ``kept``: Service addresses that stay announced, since no other node has a ready endpoint. ``sent``: every
    peer that is up has been sent all that is announced at this stage.
    """

    asked: str = ""
    stage: Drain = Drain.NO
    kept: tuple[str, ...] = ()
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Ranges:
    """The Service ranges of a configuration, sorted: ``all``. ``aggregates`` are announced as a whole.

    ``own``: by the kind of address, (ranges of which Local Services' addresses are announced, ranges of which
    every Service's are).
    """

    all: tuple[str, ...] = ()
    aggregates: frozenset[str] = frozenset()
    own: tuple[tuple[PrefixSet, PrefixSet], ...] = ((PrefixSet(), PrefixSet()),) * 3

    @classmethod
    def of(cls, config: BGPConfiguration) -> Ranges:
        """The ranges of the configuration that is in force on a node. Raises ValueError for a text that is no
        CIDR."""
        everything: set[str] = set()
        aggregates: set[str] = set()
        own: list[tuple[PrefixSet, PrefixSet]] = []
        whole = config.service_load_balancer_aggregation != "Disabled"
        for cidrs, aggregated in (
            (config.service_cluster_ips, True),
            (config.service_external_ips, True),
            (config.service_load_balancer_ips, whole),
        ):
            ranges = [canonical(cidr) for cidr in cidrs or ()]
            together = {cidr for cidr in ranges if aggregated and not _is_host(cidr)}
            everything.update(ranges)
            aggregates |= together
            own.append((PrefixSet(ranges), PrefixSet(cidr for cidr in ranges if cidr not in together)))
        return cls(tuple(sorted(everything)), frozenset(aggregates), tuple(own))

    def hosts(self, service: Service) -> Iterator[tuple[str, bool]]:
        """A Service's addresses as prefixes, each with whether every node announces it."""
        kinds = (service.cluster_ips, service.external_ips, service.load_balancer_ips)
        for addresses, (ranges, single) in zip(kinds, self.own, strict=True):
            for address in addresses:
                prefix = canonical(address)
                if service.local:
                    if ranges.covers(prefix):
                        yield prefix, False
                elif single.covers(prefix):
                    yield prefix, True


def _is_host(cidr: str) -> bool:
    _, bits, length, _ = parse(cidr)
    return length == bits


@dataclass(frozen=True, slots=True)
class _Usable:
    """Where a Service has usable endpoints of one family."""

    ready_here: bool
    ready_elsewhere: bool
    terminating_here: bool
    terminating_elsewhere: bool

    @classmethod
    def of(cls, slices: Iterable[Endpoints], version: int) -> _Usable:
        found = [one for one in slices if one.version == version]
        return cls(
            any(one.ready_here for one in found),
            any(one.ready_elsewhere for one in found),
            any(one.terminating_here for one in found),
            any(one.terminating_elsewhere for one in found),
        )

    @property
    def anywhere(self) -> bool:
        return self.ready_here or self.ready_elsewhere or self.terminating_here or self.terminating_elsewhere

    def here(self, drain: Drain) -> bool:
        """Whether packets for a Local Service should come to this node."""
        if drain is Drain.WITHDRAWN and self.ready_elsewhere:
            return False
        return self.ready_here or (self.terminating_here and not self.ready_elsewhere)


class ServiceIndex:
    """The Service prefixes to announce, kept up to date change by change.

    What is announced is a function of the present objects, whatever order they came in.
    """

    def __init__(self) -> None:
        self._ranges = Ranges()
        self._excluded = False
        self._drain = Drain.NO
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, dict[Key, Endpoints]] = {}
        self._candidates: dict[Key, tuple[tuple[str, bool], ...]] = {}
        self._hosts: dict[Key, frozenset[str]] = {}
        self._announced: Counter[str] = Counter()

    def configure(self, ranges: Ranges, *, excluded: bool, drain: Drain) -> None:
        """Set the ranges, whether the node is excluded from load balancing, and whether it is being drained."""
        if (ranges, excluded, drain) == (self._ranges, self._excluded, self._drain):
            return
        self._ranges, self._excluded, self._drain = ranges, excluded, drain
        for key in self._services:
            self._look_at(key)

    def set_service(self, key: Key, service: Service | None) -> None:
        """Take over a new or changed Service; None: it is gone."""
        if service is None:
            self._services.pop(key, None)
        else:
            self._services[key] = service
        self._look_at(key)

    def set_endpoints(self, before: Endpoints | None, after: Endpoints | None) -> None:
        """Take over a new, changed or deleted slice. The label that names its Service may have changed."""
        if before is not None:
            slices = self._slices.get(before.service_key, {})
            slices.pop(before.key, None)
            if not slices:
                self._slices.pop(before.service_key, None)
        if after is not None:
            self._slices.setdefault(after.service_key, {})[after.key] = after
        for key in {one.service_key for one in (before, after) if one is not None}:
            self._review(key)

    @property
    def needs_endpoints(self) -> bool:
        """Whether any prefix depends on endpoints."""
        return bool(self._candidates)

    def prefixes(self) -> frozenset[str]:
        """All Service prefixes to announce."""
        whole = self._ranges.aggregates if not self._excluded and self._drain is not Drain.WITHDRAWN else ()
        return frozenset(chain(whole, self._announced))

    def _look_at(self, key: Key) -> None:
        service = self._services.get(key)
        candidates = tuple(self._ranges.hosts(service)) if service else ()
        if candidates:
            self._candidates[key] = candidates
        else:
            self._candidates.pop(key, None)
        self._review(key)

    def _review(self, key: Key) -> None:
        before, now = self._hosts.pop(key, frozenset()), self._hosts_of(key)
        if now:
            self._hosts[key] = now
        self._announced.update(now - before)
        # Several Services may have one address, as external IP.
        for prefix in before - now:
            self._announced[prefix] -= 1
            if not self._announced[prefix]:
                del self._announced[prefix]

    def _hosts_of(self, key: Key) -> frozenset[str]:
        candidates = self._candidates.get(key, ())
        if not candidates or self._excluded:
            return frozenset()
        slices = self._slices.get(key, {}).values()
        usable = {version: _Usable.of(slices, version) for version in (4, 6)}
        found: set[str] = set()
        for prefix, by_all in candidates:
            there = usable[parse(prefix)[0]]
            if by_all:
                if there.anywhere and self._drain is not Drain.WITHDRAWN:
                    found.add(prefix)
            elif there.here(self._drain):
                found.add(prefix)
        return frozenset(found)


class Attributes:
    """The attributes with which a configuration has prefixes announced (``prefixAdvertisements``).

    As in Calico, the communities of every entry that covers the prefix are added. Of MED and local preference,
    which are ours, those of the most specific entry that has one count.
    """

    def __init__(self, config: BGPConfiguration, drain: Drain = Drain.NO) -> None:
        self._entries = sorted(
            ((PrefixSet([entry.cidr]), entry) for entry in config.prefix_advertisements or ()),
            key=lambda pair: parse(pair[1].cidr)[2],
        )
        self._named = config.communities
        self._drain = drain
        self._made: dict[str, Announcement] = {}

    def announcement(self, prefix: str) -> Announcement:
        """The announcement of a prefix of this node."""
        if prefix not in self._made:
            self._made[prefix] = self._make(prefix)
        return self._made[prefix]

    def _make(self, prefix: str) -> Announcement:
        covering = [entry for cidr, entry in self._entries if cidr.covers(prefix)]
        communities = {value for entry in covering for value in _values(entry, self._named)}
        preferences = [e.local_preference for e in covering if e.local_preference is not None]
        meds = [entry.med for entry in covering if entry.med is not None]
        preference = preferences[-1] if preferences else None
        if self._drain is not Drain.NO:
            # Peers of other AS numbers go by the community, those of our own by the preference.
            communities.add(GRACEFUL_SHUTDOWN)
            preference = 0
        return Announcement(
            prefix,
            med=meds[-1] if meds else None,
            local_preference=preference,
            communities=tuple(sorted(one for one in communities if one.count(":") == 1)),
            large_communities=tuple(sorted(one for one in communities if one.count(":") == 2)),
        )


def _values(entry: PrefixAdvertisement, named: Mapping[str, str]) -> Iterator[str]:
    """The values of an entry's communities. Names that stand for nothing are left out, as in Calico."""
    for community in entry.communities:
        value = community if ":" in community else named.get(community, "")
        if value:
            yield value


def unknown_communities(config: BGPConfiguration) -> tuple[Problem, ...]:
    """Names in ``prefixAdvertisements`` that ``communities`` does not have."""
    return tuple(
        Problem(
            "BGPConfiguration",
            config.name,
            f"spec.prefixAdvertisements[{number}].communities",
            f"{community!r} is no name in spec.communities",
        )
        for number, entry in enumerate(config.prefix_advertisements or ())
        for community in entry.communities
        if ":" not in community and community not in config.communities
    )
