"""Adj-rib-in and best paths (RFC 4271) with ECMP among the next hops that this node can reach.

Routes are kept as received, before any filter, so that a change of the filter needs no route refresh. Receiving
only notes changed prefixes; :meth:`Rib.take` decides those and returns the differences.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from bgp.prefixes import FAMILIES, PrefixSet, covers, parse, version

NextHops = tuple[str, ...]
"""Sorted next hop addresses of one route; empty: no route."""

DEFAULT_LOCAL_PREF = 100
_REACHED_SPARE = 1000


class Reached(NamedTuple):
    """How this node reaches a next hop: interface and length of the connected prefix; ``problem``: why not."""

    interface: str = ""
    length: int = 0
    problem: str = ""


Reach = Callable[[str], Reached]
"""Look-up of a next hop. It must not use learned routes: a next hop that only they reach is unusable."""


def anywhere(_next_hop: str) -> Reached:
    """The look-up without knowledge of the kernel."""
    return Reached()


class Unresolved(NamedTuple):
    """An unused next hop of accepted routes, with the reason."""

    next_hop: str
    problem: str


@dataclass(frozen=True, slots=True)
class Path:
    """The relevant attributes of one received route (RFC 4271 5.1).

    ``as_path`` is flattened, ``as_path_length`` counts an AS_SET as one and confederation segments as none.
    ``origin``: 0 IGP, 1 EGP, 2 INCOMPLETE.
    """

    next_hop: str
    as_path: tuple[int, ...] = ()
    as_path_length: int = 0
    origin: int = 0
    med: int = 0
    local_pref: int = DEFAULT_LOCAL_PREF

    @property
    def neighbor_asn(self) -> int:
        """The AS that sent the route to us; 0 inside our own."""
        return self.as_path[0] if self.as_path else 0


@dataclass(frozen=True, slots=True)
class Source:
    """The attributes of a path's peer that matter for the decision."""

    address: str
    router_id: str = "0.0.0.0"
    local_asn: int = 0
    local_address: str = ""
    external: bool = True
    allowed_own_asns: int = 0


@dataclass(frozen=True, slots=True)
class ImportFilter:
    """Prefixes that may be learned: inside one of ``within``, and inside none of ``never``."""

    within: PrefixSet
    never: PrefixSet

    def accepts(self, prefix: str) -> bool:
        return self.within.covers(prefix) and not self.never.covers(prefix)


Candidate = tuple[Source, Path]


def usable(source: Source, path: Path) -> bool:
    """Whether a path may take part in the decision at all (RFC 4271 9.1.2)."""
    # 9.1.2: a route whose AS_PATH has our own AS is a loop; Calico's numAllowedLocalASNumbers lets racks that
    # share one AS number exchange routes.
    if path.as_path.count(source.local_asn) > source.allowed_own_asns:
        return False
    # 5.1.3: our own address as next hop would be a loop.
    return path.next_hop != source.local_address


def problem(prefix: str, next_hop: str, reached: Reached) -> str:
    """Why a prefix cannot be routed by a next hop; empty if it can (RFC 4271 9.1.2.1).

    A next hop inside its own prefix would resolve to itself, unless a connected route is at least as specific.
    """
    if reached.problem:
        return reached.problem
    if reached.length < parse(prefix)[2] and covers(prefix, next_hop):
        return "it lies inside what is announced with it"
    return ""


def multipath(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The equally good candidates, the best first. The order of the input does not matter."""
    left = list(candidates)
    if len(left) < 2:
        return left
    # 9.1.1: the degree of preference. Routes from other ASes have the default: no import policy sets another.
    left = _best(left, lambda c: -(DEFAULT_LOCAL_PREF if c[0].external else c[1].local_pref))
    # 9.1.2.2 a: the fewest ASes in AS_PATH.
    left = _best(left, lambda c: c[1].as_path_length)
    # 9.1.2.2 b: the lowest ORIGIN.
    left = _best(left, lambda c: c[1].origin)
    # 9.1.2.2 c: the lowest MULTI_EXIT_DISC, but only among routes of the same neighbouring AS.
    least: dict[int, int] = {}
    for _, path in left:
        least[path.neighbor_asn] = min(path.med, least.get(path.neighbor_asn, path.med))
    left = [c for c in left if c[1].med == least[c[1].neighbor_asn]]
    # 9.1.2.2 d: eBGP before iBGP.
    left = _best(left, lambda c: not c[0].external)
    # 9.1.2.2 e, the interior cost: without an IGP every next hop costs the same. The rest is ECMP.
    # 9.1.2.2 f and g: the lowest BGP identifier, then the lowest peer address, only sort it.
    return sorted(left, key=lambda c: (_number(c[0].router_id), _number(c[0].address)))


def _best(candidates: list[Candidate], cost: Callable[[Candidate], int]) -> list[Candidate]:
    if len(candidates) < 2:
        return candidates
    least = min(map(cost, candidates))
    return [c for c in candidates if cost(c) == least]


@lru_cache(maxsize=4096)
def _number(address: str) -> int:
    return int(ipaddress.ip_address(address))


class Rib:
    """Routes by peer and the best routes among them. All costs are linear in the prefixes touched.

    A peer's routes can be *doubted*: kept in use, but removed by :meth:`confirm` unless announced again before.
    This serves graceful restart (RFC 4724), enhanced route refresh (RFC 7313) and reading back ExaBGP's table.
    """

    def __init__(self, *, max_paths: int = 16) -> None:
        self._max_paths = max_paths
        self._filter = ImportFilter(PrefixSet(), PrefixSet())
        self._sources: dict[str, Source] = {}
        self._prefixes: dict[str, set[str]] = {}
        self._doubted: dict[str, set[str]] = {}
        self._paths: dict[str, dict[str, Path]] = {}
        self._best: dict[str, NextHops] = {}
        self._changed: set[str] = set()
        self._moved: set[str] = set()
        self._reach: Reach = anywhere
        self._reached: dict[str, Reached] = {}
        self._left_out: dict[str, tuple[Unresolved, ...]] = {}
        self._unresolved: dict[Unresolved, int] = {}

    @property
    def best(self) -> Mapping[str, NextHops]:
        """Prefix -> next hops, as of the last :meth:`take`."""
        return self._best

    def set_filter(self, new: ImportFilter) -> None:
        """Set the import filter, and decide everything again if it differs."""
        if new != self._filter:
            self._filter = new
            self._changed.update(self._paths)

    def set_reach(self, reach: Reach) -> None:
        """Set the look-up of next hops, and decide routes again whose next hops have another answer."""
        self._reach = reach
        moved = {hop for hop, before in self._reached.items() if reach(hop) != before}
        for hop in moved:
            del self._reached[hop]
        if not moved:
            return
        for prefix, paths in self._paths.items():
            if any(path.next_hop in moved for path in paths.values()):
                self._changed.add(prefix)
                self._moved.add(prefix)

    @property
    def unresolved(self) -> Mapping[Unresolved, int]:
        """Unused next hop -> number of accepted prefixes, as of the last :meth:`take`."""
        return self._unresolved

    def prefixes_without_next_hop(self) -> int:
        """Number of accepted prefixes that have paths, but no resolvable one."""
        return sum(prefix not in self._best for prefix in self._left_out)

    @property
    def undecided(self) -> bool:
        """Whether :meth:`take` has prefixes to decide."""
        return bool(self._changed)

    def set_max_paths(self, most: int) -> None:
        """Limit the next hops of one route."""
        if most != self._max_paths:
            self._max_paths = most
            self._changed.update(self._paths)

    def set_source(self, source: Source) -> None:
        """Add or update a peer, before its first route."""
        if self._sources.get(source.address) != source:
            self._sources[source.address] = source
            self._changed.update(self._prefixes.setdefault(source.address, set()))

    def announce(self, peer: str, prefix: str, path: Path) -> None:
        """Add or replace a peer's route."""
        self._prefixes[peer].add(prefix)
        if doubted := self._doubted.get(peer):
            doubted.discard(prefix)
        paths = self._paths.setdefault(prefix, {})
        if paths.get(peer) != path:
            paths[peer] = path
            self._changed.add(prefix)

    def withdraw(self, peer: str, prefix: str) -> None:
        """Remove a peer's route; a prefix that it never announced is ignored (RFC 4271 9)."""
        known = self._prefixes.get(peer, set())
        if prefix not in known:
            return
        known.remove(prefix)
        self._doubted.get(peer, set()).discard(prefix)
        paths = self._paths[prefix]
        del paths[peer]
        if not paths:
            del self._paths[prefix]
        self._changed.add(prefix)

    def doubt(self, peer: str, families: Collection[int] = FAMILIES) -> None:
        """Keep the peer's routes in use until :meth:`confirm`, unless they are announced again."""
        self._doubted.setdefault(peer, set()).update(self._of(peer, families))

    def confirm(self, peer: str) -> None:
        """Remove the routes of a peer that are still doubted, now that its table is complete."""
        for prefix in self._doubted.pop(peer, ()):
            self.withdraw(peer, prefix)

    def believe(self, peer: str, prefix: str) -> None:
        """Keep a doubted route as it was: the peer still has it, but its attributes could not be read."""
        self._doubted.get(peer, set()).discard(prefix)

    def drop(self, peer: str, families: Collection[int] = FAMILIES) -> None:
        """Remove all routes of a peer."""
        for prefix in self._of(peer, families):
            self.withdraw(peer, prefix)

    def _of(self, peer: str, families: Collection[int]) -> list[str]:
        return [prefix for prefix in self._prefixes.get(peer, ()) if version(prefix) in families]

    def count(self, peer: str) -> int:
        """Number of prefixes a peer has announced, before the filter."""
        return len(self._prefixes.get(peer, ()))

    def take(self, most: int | None = None) -> dict[str, NextHops]:
        """Decide prefixes touched since the last call, up to ``most``; returns changed routes, () for removed.

        A route with the same next hops counts as changed if one of them is reached in another way than before.
        """
        changes: dict[str, NextHops] = {}
        for _ in range(len(self._changed) if most is None else min(most, len(self._changed))):
            prefix = self._changed.pop()
            next_hops, moved = self._decide(prefix), prefix in self._moved
            self._moved.discard(prefix)
            if next_hops == self._best.get(prefix, ()) and not (moved and next_hops):
                continue
            changes[prefix] = next_hops
            if next_hops:
                self._best[prefix] = next_hops
            else:
                del self._best[prefix]
        return changes

    def _decide(self, prefix: str) -> NextHops:
        paths = self._paths.get(prefix)
        if not paths or not self._filter.accepts(prefix):
            self._leave_out(prefix, ())
            return ()
        candidates: list[Candidate] = []
        left_out: list[Unresolved] = []
        for peer, path in paths.items():
            source = self._sources[peer]
            if not usable(source, path):
                continue
            # 9.1.2.1: a route that cannot be resolved takes no part in the decision.
            if why := problem(prefix, path.next_hop, self._reached_by(path.next_hop)):
                left_out.append(Unresolved(path.next_hop, why))
            else:
                candidates.append((source, path))
        self._leave_out(prefix, tuple(dict.fromkeys(left_out)))
        next_hops = dict.fromkeys(path.next_hop for _, path in multipath(candidates))
        return tuple(sorted(list(next_hops)[: self._max_paths]))

    def _reached_by(self, next_hop: str) -> Reached:
        reached = self._reached.get(next_hop)
        if reached is None:
            if len(self._reached) > 2 * len(self._paths) + _REACHED_SPARE:
                self._forget_unused()
            reached = self._reached[next_hop] = self._reach(next_hop)
        return reached

    def _forget_unused(self) -> None:
        """Bound the cache: a peer may announce any number of next hops in turn."""
        used = {path.next_hop for paths in self._paths.values() for path in paths.values()}
        self._reached = {hop: reached for hop, reached in self._reached.items() if hop in used}

    def _leave_out(self, prefix: str, now: tuple[Unresolved, ...]) -> None:
        """Update the counts of unused next hops."""
        before = self._left_out.pop(prefix, ())
        if now:
            self._left_out[prefix] = now
        if now == before:
            return
        for which in now:
            self._unresolved[which] = self._unresolved.get(which, 0) + 1
        for which in before:
            self._unresolved[which] -= 1
            if not self._unresolved[which]:
                del self._unresolved[which]
