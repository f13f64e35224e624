"""Adj-rib-in and the best routes of it (RFC 4271), with ECMP among the next hops that this node can reach.

Routes are kept as received, before any filter, so that a change of the filters needs no route refresh. Receiving
only notes changed prefixes; :meth:`Rib.take` decides those and returns the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from bgp.announcement import GRACEFUL_SHUTDOWN
from bgp.damping import Damping
from bgp.decision import DEFAULT_LOCAL_PREF, Candidate, Identity, Path, Source, loop, lost_by, multipath
from bgp.filters import Route, changed_path, decide
from bgp.prefixes import FAMILIES, PrefixSet, covers, parse, version

NextHops = tuple[str, ...]
"""Sorted next hop addresses of one route; empty: no route."""

PREFIX_LIMIT = 50_000
"""Prefixes of one peer, where nothing else is said: some 200 MB in ExaBGP, and ten of each of 5,000 nodes."""

_REACHED_SPARE = 1000
_Nlri = tuple[str, str]
"""Prefix and path identifier (RFC 7911) of one path of a peer; empty: its only one."""

_NOTHING: set[_Nlri] = set()


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
class ImportFilter:
    """Prefixes that may be learned: inside one of ``within``, and inside none of ``never``."""

    within: PrefixSet
    never: PrefixSet

    def accepts(self, prefix: str) -> bool:
        return self.within.covers(prefix) and not self.never.covers(prefix)


class Judged(NamedTuple):
    """A path after the import filters. ``refused``: why it takes no part; ``unresolved``: it is the next hop."""

    path: Path
    refused: str = ""
    unresolved: str = ""


@dataclass(frozen=True, slots=True)
class Explained:
    """One path to a prefix, after the import filters. ``used``: its next hop is one of the route's.

    ``reason``: why it is not the best one; empty if it is.
    """

    peer: str
    path: Path
    used: bool
    reason: str = ""


def problem(prefix: str, next_hop: str, reached: Reached) -> str:
    """Why a prefix cannot be routed by a next hop; empty if it can (RFC 4271 9.1.2.1).

    A next hop inside its own prefix would resolve to itself, unless a connected route is at least as specific.
    """
    if reached.problem:
        return reached.problem
    if reached.length < parse(prefix)[2] and covers(prefix, next_hop):
        return "it lies inside what is announced with it"
    return ""


class Rib:
    """Routes by peer and the best routes among them. All costs are linear in the prefixes touched.

    A peer's routes can be *doubted*: kept in use, but removed by :meth:`confirm` unless announced again before.
    This serves graceful restart (RFC 4724), enhanced route refresh (RFC 7313) and reading back ExaBGP's table.
    """

    def __init__(self, *, max_paths: int = 16) -> None:
        self._max_paths = max_paths
        self._filter = ImportFilter(PrefixSet(), PrefixSet())
        self._sources: dict[str, Source] = {}
        self._prefixes: dict[str, set[_Nlri]] = {}
        self._doubted: dict[str, set[_Nlri]] = {}
        self._paths: dict[str, dict[tuple[str, str], Path]] = {}
        """Prefix -> peer and path identifier -> path."""
        self._best: dict[str, NextHops] = {}
        self._priorities: dict[str, int] = {}
        self._changed: set[str] = set()
        self._moved: set[str] = set()
        self._own = Identity()
        self._reflected: dict[str, Candidate] = {}
        self._reflect: set[str] = set()
        self._over: set[str] = set()
        self._reach: Reach = anywhere
        self._reached: dict[str, Reached] = {}
        self._left_out: dict[str, tuple[Unresolved, ...]] = {}
        self._unresolved: dict[Unresolved, int] = {}
        self._damping = Damping()

    def tick(self, now: float) -> None:
        """Let time pass: paths that flapped and do no longer take part again."""
        self._changed.update(prefix for _, prefix, _ in self._damping.tick(now) if prefix in self._paths)

    @property
    def flapping(self) -> frozenset[str]:
        """Peers of which some path is left out for a time, since it changes all the time."""
        return self._damping.suppressed

    @property
    def best(self) -> Mapping[str, NextHops]:
        """Prefix -> next hops, as of the last :meth:`take`."""
        return self._best

    @property
    def priorities(self) -> Mapping[str, int]:
        """Prefix -> metric that the kernel's route shall have, of those that a filter has given one."""
        return self._priorities

    @property
    def reflected(self) -> Mapping[str, Candidate]:
        """Of a route reflector: prefix -> the path to reflect, as of the last :meth:`take`."""
        return self._reflected

    def set_filter(self, new: ImportFilter) -> None:
        """Set the import filter, and decide everything again if it differs."""
        if new != self._filter:
            self._filter = new
            self._changed.update(self._paths)

    def set_own(self, own: Identity) -> None:
        """Set who we are, and decide everything again if it differs."""
        if own != self._own:
            self._own = own
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
            self._changed.update(prefix for prefix, _ in self._prefixes.setdefault(source.address, set()))

    def announce(self, peer: str, prefix: str, path: Path) -> None:
        """Add or replace a peer's path. One over the peer's limit is left out; :meth:`over` says so."""
        known, doubted = self._prefixes[peer], self._doubted.get(peer, _NOTHING)
        nlri = prefix, path.path_id
        # Doubted routes do not count: they may be replaced by as many others. One that is repeated does.
        if len(known) - len(doubted) >= self.limit(peer) and (nlri not in known or nlri in doubted):
            self._over.add(peer)
            return
        known.add(nlri)
        doubted.discard(nlri)
        paths, key = self._paths.setdefault(prefix, {}), (peer, path.path_id)
        before = paths.get(key)
        if before != path:
            if before and before.next_hop != path.next_hop:
                self._damping.note((peer, *nlri))
            paths[key] = path
            self._changed.add(prefix)

    def withdraw(self, peer: str, prefix: str, path_id: str = "") -> None:
        """Remove a peer's path; one that it never announced is ignored (RFC 4271 9, RFC 7911 5)."""
        if self._remove(peer, prefix, path_id):
            self._damping.note((peer, prefix, path_id))

    def _remove(self, peer: str, prefix: str, path_id: str) -> bool:
        """Whether it was there. What goes with its session does not flap by itself."""
        known = self._prefixes.get(peer, set())
        if (prefix, path_id) not in known:
            return False
        known.remove((prefix, path_id))
        self._doubted.get(peer, set()).discard((prefix, path_id))
        paths = self._paths[prefix]
        del paths[peer, path_id]
        if not paths:
            del self._paths[prefix]
        self._changed.add(prefix)
        return True

    def doubt(self, peer: str, families: Collection[int] = FAMILIES) -> None:
        """Keep the peer's routes in use until :meth:`confirm`, unless they are announced again."""
        self._doubted.setdefault(peer, set()).update(self._of(peer, families))

    def confirm(self, peer: str) -> None:
        """Remove the routes of a peer that are still doubted, now that its table is complete."""
        for nlri in self._doubted.pop(peer, ()):
            self._remove(peer, *nlri)

    def believe(self, peer: str, prefix: str, path_id: str = "") -> None:
        """Keep a doubted route as it was: the peer still has it, but its attributes could not be read."""
        self._doubted.get(peer, set()).discard((prefix, path_id))

    def drop(self, peer: str, families: Collection[int] = FAMILIES) -> None:
        """Remove all routes of a peer."""
        for nlri in self._of(peer, families):
            self._remove(peer, *nlri)
        if not self.count(peer):
            self._over.discard(peer)

    def _of(self, peer: str, families: Collection[int]) -> list[_Nlri]:
        return [nlri for nlri in self._prefixes.get(peer, ()) if version(nlri[0]) in families]

    def limit(self, peer: str) -> int:
        """How many prefixes of a peer are kept at most; of several paths to one (RFC 7911) each counts."""
        return self._sources[peer].prefix_limit or PREFIX_LIMIT

    def over(self, peer: str) -> bool:
        """Whether a peer has announced more prefixes than its limit since all of it was dropped last."""
        return peer in self._over

    def count(self, peer: str) -> int:
        """Number of prefixes a peer has announced, before the filter."""
        return len(self._prefixes.get(peer, ()))

    def take(self, most: int | None = None) -> dict[str, NextHops]:
        """Decide prefixes touched since the last call, up to ``most``; returns changed routes, () for removed.

        A route with the same next hops counts as changed if one of them is reached in another way than before, or
        if its priority is another.
        """
        changes: dict[str, NextHops] = {}
        for _ in range(len(self._changed) if most is None else min(most, len(self._changed))):
            prefix = self._changed.pop()
            before = self._best.get(prefix, ()), self._priorities.get(prefix)
            next_hops, moved = self._decide(prefix), prefix in self._moved
            self._moved.discard(prefix)
            if (next_hops, self._priorities.get(prefix)) == before and not (moved and next_hops):
                continue
            changes[prefix] = next_hops
            if next_hops:
                self._best[prefix] = next_hops
            else:
                del self._best[prefix]
        return changes

    def take_reflected(self) -> dict[str, Candidate | None]:
        """Prefixes whose path to reflect is another since the last call; None: none any more."""
        changed, self._reflect = self._reflect, set()
        return {prefix: self._reflected.get(prefix) for prefix in changed}

    def explain(self, prefix: str) -> list[Explained]:
        """Every path to a prefix, the best one first, and why the others are not the best. Canonical prefix."""
        judged = {key: self._judge(prefix, key[0], path) for key, path in self._paths.get(prefix, {}).items()}
        accepted = self._filter.accepts(prefix)
        candidates = [
            (self._sources[peer], one.path)
            for (peer, _), one in judged.items()
            if accepted and not (one.refused or one.unresolved)
        ]
        ranked, lost = multipath(candidates), lost_by(candidates)
        equal = {(source.address, path.path_id) for source, path in ranked}
        next_hops = self._next_hops(ranked)
        found = []
        for key, one in judged.items():
            if not accepted:
                reason = "the prefix is none that this node learns"
            else:
                reason = one.refused or one.unresolved or (lost[key].value if key in lost else "")
            used = key in equal and one.path.next_hop in next_hops
            found.append(Explained(key[0], one.path, used, reason))
        return sorted(found, key=lambda one: (bool(one.reason), not one.used, one.peer, one.path.path_id))

    def _decide(self, prefix: str) -> NextHops:
        paths = self._paths.get(prefix)
        candidates: list[Candidate] = []
        fallback: list[Candidate] = []
        left_out: list[Unresolved] = []
        for (peer, _), path in paths.items() if paths and self._filter.accepts(prefix) else ():
            judged = self._judge(prefix, peer, path)
            if judged.refused:
                continue
            # 9.1.2.1: a route that cannot be resolved takes no part in the decision.
            if judged.unresolved:
                left_out.append(Unresolved(path.next_hop, judged.unresolved))
                fallback.append((self._sources[peer], judged.path))
            else:
                candidates.append((self._sources[peer], judged.path))
        self._leave_out(prefix, tuple(dict.fromkeys(left_out)))
        if self._own.cluster_id or self._reflected:
            self._set_reflected(prefix, candidates or fallback)
        ranked = multipath(candidates)
        if ranked and ranked[0][1].priority is not None:
            self._priorities[prefix] = ranked[0][1].priority
        else:
            self._priorities.pop(prefix, None)
        return self._next_hops(ranked)

    def _next_hops(self, ranked: list[Candidate]) -> NextHops:
        next_hops = dict.fromkeys(path.next_hop for _, path in ranked)
        return tuple(sorted(list(next_hops)[: self._max_paths]))

    def _judge(self, prefix: str, peer: str, path: Path) -> Judged:
        """Whether a path of an accepted prefix takes part in the decision, and with which attributes."""
        source = self._sources[peer]
        if why := loop(source, path, self._own):
            return Judged(path, refused=why)
        if self._damping.suppresses((peer, prefix, path.path_id)):
            return Judged(path, refused="it flaps, and takes part again once it has not changed for some seconds")
        reached = self._reached_by(path.next_hop)
        if source.external and path.local_pref != DEFAULT_LOCAL_PREF:
            # RFC 4271, 5.1.5: it has no meaning from another AS. The filters may set one.
            path = replace(path, local_pref=DEFAULT_LOCAL_PREF)
        if GRACEFUL_SHUTDOWN in path.communities:
            # RFC 8326: who sends it is about to go, so that any other path is better.
            path = replace(path, local_pref=0)
        if source.filters:
            route = Route(
                prefix,
                source.external,
                interface=reached.interface,
                communities=path.communities,
                large_communities=path.large_communities,
                as_path=path.as_path,
                priority=path.priority,
            )
            decided = decide(source.filters, route, imported=True)
            if decided and not decided.rule.accept:
                return Judged(path, refused=f"BGPFilter {decided.filter} rejects it")
            if decided:
                path = changed_path(path, decided.rule.operations)
        return Judged(path, unresolved=problem(prefix, path.next_hop, reached))

    def _set_reflected(self, prefix: str, candidates: list[Candidate]) -> None:
        """A route reflector need not be on the links of its clients: what it cannot reach itself it reflects if
        there is nothing better."""
        now = multipath(candidates)[0] if self._own.cluster_id and candidates else None
        if now == self._reflected.get(prefix):
            return
        self._reflect.add(prefix)
        if now:
            self._reflected[prefix] = now
        else:
            self._reflected.pop(prefix, None)

    def interface(self, next_hop: str) -> str:
        """The interface that leads to a next hop; empty: none does."""
        return self._reached_by(next_hop).interface

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
