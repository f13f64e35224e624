"""Facts in, desired kernel state out. No I/O.

Every change has two steps. :meth:`Planner.take` returns new objects and moves endpoints to them;
:meth:`Planner.confirm`, once the kernel has those, returns the removal of objects that no packet can reach any
more. So no chain disappears while packets traverse it. Nothing else may be called between the two: a change in
between would be confirmed without having been written.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import lru_cache

from felix_py.desired.classes import ClassNumbers
from felix_py.desired.marks import OVERFLOW
from felix_py.desired.names import SetNames, chain_name, class_set_name, set_name
from felix_py.desired.render import dispatch_chains, render_chain
from felix_py.desired.static import StaticOptions, closed_hooks, static_chains, static_hooks, static_sets
from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.records import Lease, NextHop, Route, RouteKind, SetSpec, SetType, Update
from felix_py.refs import ChainRef, RouteRef
from felix_py.ruleset.model import Rules
from policy.ir import Chain, ChainId, Delta, SetKind
from policy.model import Direction, Family

HeldNumbers = Mapping[tuple[Family, Direction], Mapping[ChainId, int]]
"""Class numbers in the kernel's dispatch rules, as the dataplane read them back."""

TakenNumbers = Mapping[tuple[Family, Direction], Collection[int]]
"""Class numbers in the kernel's map sets, whether or not (after a flush) dispatch rules have them."""

_SET_TYPES = {
    SetKind.ADDRESSES: SetType.IP,
    SetKind.NETWORKS: SetType.NET,
    SetKind.ADDRESS_PORTS: SetType.IP_PORT,
}


class Planner:
    """Desired kernel state of one node."""

    def __init__(
        self,
        families: Iterable[Family],
        options: StaticOptions,
        held: HeldNumbers,
        taken: TakenNumbers | None = None,
        before: HeldNumbers | None = None,
        closed: Iterable[Family] = (),
    ) -> None:
        """``before``: numbers in rules of the host's other backend, until those are removed.

        ``closed``: families of the kernel that are switched off.
        """
        self._closed = Update(hooks={hook: True for family in closed for hook in closed_hooks(family, options)})
        taken, before = taken or {}, before or {}
        self._families: dict[Family, _FamilyPlan] = {}
        for family in families:
            keys = {d: (family, d) for d in Direction}
            numbers = {
                d: ClassNumbers(held.get(k, {}), taken.get(k, ()), before.get(k, {})) for d, k in keys.items()
            }
            self._families[family] = _FamilyPlan(family, options, numbers)

    def attach(self, lease: Lease) -> None:
        """Bind an endpoint's addresses to its interface, which is up, and route them."""
        for family, address in lease.addresses.items():
            if family in self._families:
                self._families[family].bind(address, lease.interface)

    def leave(self, lease: Lease) -> None:
        """Remove the routes of an endpoint whose interface is about to be deleted."""
        for family, address in lease.addresses.items():
            if family in self._families:
                self._families[family].unroute(address)

    def detach(self, lease: Lease) -> None:
        """Remove an endpoint that is gone or replaced by another one."""
        for family, address in lease.addresses.items():
            if family in self._families:
                self._families[family].unbind(address, lease.interface)

    def policy(self, delta: Delta) -> None:
        """Take over a change of compiled policy."""
        if delta.family in self._families:
            self._families[delta.family].policy(delta)

    def cluster(
        self,
        own: Iterable[str],
        pods: Iterable[str],
        nodes: Iterable[str],
        masqueraded: Iterable[str] | None = None,
    ) -> None:
        """Set the node's own pod CIDRs, every pod CIDR of the cluster, and the addresses of all nodes.

        ``masqueraded``: sources whose packets to anywhere else are masqueraded; None: ``pods``.
        """
        own, pods, nodes = list(own), list(pods), list(nodes)
        sources = pods if masqueraded is None else list(masqueraded)
        for family, plan in self._families.items():
            inside = _of(family, pods) | _of(family, nodes)
            plan.cluster(_of(family, own), _of(family, sources), inside)

    def learned(self, routes: Mapping[RouteRef, Route | None]) -> None:
        """Take over changes of the best routes, as :func:`learned_routes` makes them."""
        for key, route in routes.items():
            family = Family.V6 if ":" in key.destination else Family.V4
            if family in self._families:
                self._families[family].learned(key, route)

    @property
    def classes(self) -> int:
        """The number of policy classes that have endpoints, of both directions and all families."""
        return sum(plan.classes for plan in self._families.values())

    def take(self) -> Update:
        """Returns what must be written now."""
        closed, self._closed = self._closed, Update()
        return _joined([closed, *(plan.take() for plan in self._families.values())])

    def confirm(self) -> Update:
        """Returns what may be removed, now that the kernel has all that :meth:`take` returned."""
        return _joined(plan.confirm() for plan in self._families.values())


def learned_routes(
    routes: Mapping[str, tuple[str, ...]],
    interface_of: Callable[[str], str],
    metric_of: Callable[[str], int] = lambda _prefix: 0,
) -> dict[RouteRef, Route | None]:
    """The routes for prefix -> gateways; () withdraws a prefix.

    ``interface_of`` returns the interface towards a gateway; empty: the kernel looks it up. A link-local gateway
    is followed by its interface: ``fe80::1%eth0``. ``metric_of`` returns the metric of a prefix; 0: the default.
    """
    made: dict[RouteRef, Route | None] = {}
    hops_of: dict[tuple[str, ...], tuple[NextHop, ...]] = {}
    for prefix, gateways in routes.items():
        key = RouteRef(prefix, ROUTE_PROTOCOL_LEARNED)
        hops = hops_of.get(gateways)
        if hops is None:
            hops = hops_of[gateways] = tuple(
                NextHop(g.partition("%")[0], interface_of(g)) for g in sorted(gateways)
            )
        made[key] = Route(key, next_hops=hops, metric=metric_of(prefix)) if hops else None
    return made


def _joined(updates: Iterable[Update]) -> Update:
    """Join the updates of all families. Their keys are disjoint, so no value (up to a million) is copied."""
    whole = Update()
    for update in updates:
        whole.emptied |= update.emptied
        whole.sets |= update.sets
        whole.members |= update.members
        whole.chains |= update.chains
        whole.hooks |= update.hooks
        whole.routes |= update.routes
    return whole


def _of(family: Family, cidrs: Iterable[str]) -> set[str]:
    return {text for version, text in map(_parsed, cidrs) if version == int(family)}


@lru_cache(maxsize=1 << 15)
def _parsed(cidr: str) -> tuple[int, str]:
    """Version and text. Each change of a node, or of a pod outside its podCIDRs, brings all CIDRs again."""
    network = ipaddress.ip_network(cidr)
    return network.version, str(network)


class _FamilyPlan:
    def __init__(self, family: Family, options: StaticOptions, classes: Mapping[Direction, ClassNumbers]) -> None:
        self._family = family
        self._options = options
        self._names = SetNames.of(family)
        self._now = Update()
        self._later = Update()
        self._classes = classes
        self._class_of: dict[tuple[Direction, str], ChainId] = {}
        self._population: dict[ChainId, int] = {}
        self._dispatch: dict[str, Rules] = {}
        self._dispatched: dict[Direction, dict[ChainId, int]] = {}
        self._rendered: dict[ChainId, frozenset[str]] = {}
        self._own: set[str] = set()
        self._filled: dict[str, set[str]] = {}
        self._bound: dict[str, str] = {}
        for spec in static_sets(family, options):
            self._now.sets[spec.name] = spec
        for (table, chain), rules in static_chains(family, options).items():
            self._now.chains[ChainRef(family, table, chain)] = rules
        for hook in static_hooks(family, options):
            self._now.hooks[hook] = True
        self._plan_dispatch(self._now)

    @property
    def classes(self) -> int:
        return len(self._population)

    # --- endpoints -----------------------------------------------------------------------------------

    def bind(self, address: str, interface: str) -> None:
        self._member(self._names.source, f"{address},{interface}", 0)
        self._member(self._names.local, address, 0)
        self._bound[address] = interface
        key = self._pod_route(address)
        self._now.routes[key] = Route(key, next_hops=(NextHop(interface=interface),), link_scope=True)

    def unbind(self, address: str, interface: str) -> None:
        self._member(self._names.source, f"{address},{interface}", None)
        if self._bound.get(address) != interface:
            return  # another endpoint has the address already
        del self._bound[address]
        self._member(self._names.local, address, None)
        self.unroute(address)

    def unroute(self, address: str) -> None:
        key = self._pod_route(address)
        self._now.routes[key] = Route(key, RouteKind.BLACKHOLE) if key.destination in self._own else None

    def _pod_route(self, address: str) -> RouteRef:
        return RouteRef(f"{address}/{self._family.bits}", ROUTE_PROTOCOL_PODS)

    # --- policy --------------------------------------------------------------------------------------

    def policy(self, delta: Delta) -> None:
        for peers, kind in delta.sets.items():
            name = set_name(self._family, peers)
            if kind is None:
                self._later.sets[name] = None
            else:
                self._revive(name, SetSpec(name, _SET_TYPES[kind], self._family))
        for peers, members in delta.members.items():
            name = set_name(self._family, peers)
            for member, present in members.items():
                self._member(name, member, 0 if present else None)
        for id_, chain in delta.chains.items():
            self._chain(id_, chain)
        for (direction, address), class_chain in delta.classes.items():
            self._move(direction, address, class_chain)
        if delta.classes:
            self._plan_dispatch(self._now)

    def _chain(self, id_: ChainId, chain: Chain | None) -> None:
        """Take over one compiled chain, with its deny chains."""
        marks, log = self._options.marks, self._options.deny_log
        rendered = render_chain(self._family, chain, marks, log) if chain else {}
        for gone in self._rendered.pop(id_, frozenset({chain_name(id_)})) - rendered.keys():
            key = ChainRef(self._family, "filter", gone)
            self._now.chains.pop(key, None)
            self._later.chains[key] = None
        for needed, rules in rendered.items():
            key = ChainRef(self._family, "filter", needed)
            self._later.chains.pop(key, None)
            self._now.chains[key] = rules
        if rendered:
            self._rendered[id_] = frozenset(rendered)

    def _move(self, direction: Direction, address: str, chain: ChainId | None) -> None:
        """Move an endpoint's address into another class, or out of all (``chain`` None)."""
        numbers = self._classes[direction]
        before = self._class_of.pop((direction, address), None)
        if before is not None:
            self._population[before] -= 1
            if numbers.numbers()[before] == OVERFLOW:
                self._member(class_set_name(self._family, before), address, None)
            if not self._population[before]:
                del self._population[before]
                numbers.retire(before)
        if chain is None:
            self._member(self._names.class_map(direction), address, None)
            return
        self._class_of[direction, address] = chain
        self._population[chain] = self._population.get(chain, 0) + 1
        number = numbers.claim(chain)
        if number == OVERFLOW:
            name = class_set_name(self._family, chain)
            self._revive(name, SetSpec(name, SetType.IP, self._family))
            self._member(name, address, 0)
        self._member(self._names.class_map(direction), address, self._options.marks.class_mark(direction, number))

    def _plan_dispatch(self, update: Update) -> None:
        current = {direction: numbers.numbers() for direction, numbers in self._classes.items()}
        if current == self._dispatched:
            return
        self._dispatched = current
        marks, log = self._options.marks, self._options.deny_log
        wanted: dict[str, Rules] = {}
        for direction, numbers in current.items():
            wanted |= dispatch_chains(self._family, direction, numbers, marks, log)
        for name, rules in wanted.items():
            key = ChainRef(self._family, "filter", name)
            self._later.chains.pop(key, None)
            if self._dispatch.get(name) != rules:
                update.chains[key] = rules
        for name in self._dispatch.keys() - wanted.keys():
            update.chains[ChainRef(self._family, "filter", name)] = None
        self._dispatch = wanted

    # --- the cluster ---------------------------------------------------------------------------------

    def cluster(self, own: set[str], sources: set[str], inside: set[str]) -> None:
        for cidr in own - self._own:
            key = RouteRef(cidr, ROUTE_PROTOCOL_PODS)
            self._now.routes[key] = Route(key, RouteKind.BLACKHOLE)
        for cidr in self._own - own:
            address, _, length = cidr.partition("/")
            if length != str(self._family.bits) or address not in self._bound:  # else it is a pod's by now
                self._now.routes[RouteRef(cidr, ROUTE_PROTOCOL_PODS)] = None
        self._own = own
        if self._options.nat_outgoing:
            self._fill(self._names.pool, sources)
            self._fill(self._names.no_masquerade, inside)

    def _fill(self, name: str, cidrs: set[str]) -> None:
        """Make ``cidrs`` the exact content of a set."""
        held = self._filled.get(name, set())
        for cidr in held ^ cidrs:
            self._member(name, cidr, 0 if cidr in cidrs else None)
        self._filled[name] = cidrs

    def learned(self, key: RouteRef, route: Route | None) -> None:
        self._now.routes[key] = route

    # --- the two steps -------------------------------------------------------------------------------

    def take(self) -> Update:
        update, self._now = self._now, Update()
        return update

    def confirm(self) -> Update:
        update, self._later = self._later, Update()
        for numbers in self._classes.values():
            overflow = {chain for chain, number in numbers.numbers().items() if number == OVERFLOW}
            for chain in numbers.free() & overflow:
                update.sets[class_set_name(self._family, chain)] = None
        self._plan_dispatch(update)
        return update

    def _revive(self, name: str, spec: SetSpec) -> None:
        """Ask for a set; one whose removal is pending is emptied first."""
        if name in self._later.sets:
            del self._later.sets[name]
            self._now.emptied.add(name)
        self._now.sets[name] = spec

    def _member(self, set_name: str, member: str, mark: int | None) -> None:
        self._now.members.setdefault(set_name, {})[member] = mark
