"""BGP as the API declares it, with what was good last where something cannot be used now.

An object that cannot be used, a filter that is gone while a peer names it, and a Secret that cannot be read leave
in force what was there before: a mistake in one object ends no session, and changes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bgp import fields, parse
from bgp.fields import BGPConfigError
from bgp.model import SpeakerConfig
from bgp.resources import BGPConfiguration, BGPFilter, BGPNode, BGPPeer, Problem, SecretKey
from bgp.services import unknown_communities
from bgp.topology import merged, topology

_READERS: Mapping[str, Any] = {
    parse.FILTER: parse.filter_,
    parse.CONFIGURATION: parse.configuration,
    parse.PEER: parse.peer,
}
KINDS = tuple(_READERS)
"""In the order in which they are taken over: peers name filters."""

_KEPT = "; what was there before stays in force"
_LEFT_OUT = "; it is not used"

Specs = Mapping[str, Mapping[str, object]]
"""Kind -> name -> spec, as decoded JSON."""

Passwords = Mapping[SecretKey, str]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An object whose spec cannot be decoded."""

    reason: str


@dataclass(frozen=True, slots=True)
class Given:
    """What the API says now.

    ``secrets``: name -> its keys, None if it does not exist; one that has not been read yet is not there.
    ``overdue``: those that should have been read by now. ``nodes`` and ``node_problems``: as
    :func:`bgp.node.bgp_node` returns them.
    """

    specs: Mapping[str, Mapping[str, object | Unreadable]]
    nodes: Mapping[str, BGPNode]
    node_problems: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    overdue: frozenset[str] = frozenset()

    def awaits(self, key: SecretKey | None) -> bool:
        """Whether the Secret will be read in a moment."""
        return key is not None and key.name not in self.secrets and key.name not in self.overdue


@dataclass(frozen=True, slots=True)
class Verdict:
    """``certain`` false: the speaker must go on as it is, since a BGPConfiguration of this node cannot be used
    and never could. ``speaker`` None: the API declares no BGP here. ``configuration``: the one of this node.
    ``wanted``: names of the Secrets that this node needs.
    """

    speaker: SpeakerConfig | None
    problems: tuple[Problem, ...]
    wanted: frozenset[str]
    certain: bool = True
    configuration: BGPConfiguration = field(default_factory=lambda: BGPConfiguration(name=parse.DEFAULT))


class Declared:
    """The resources of a cluster, for one of its nodes. ``specs`` and ``passwords``: those that are in force."""

    def __init__(self, node_name: str, specs: Specs, passwords: Passwords) -> None:
        """``specs`` and ``passwords``: what was good last, in an earlier life."""
        self._node_name = node_name
        self._records: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
        self._nodes: dict[str, BGPNode] = {}
        self._awaited: set[SecretKey] = set()
        self.specs: dict[str, dict[str, object]] = {kind: {} for kind in KINDS}
        self.passwords: dict[SecretKey, str] = dict(passwords)
        for kind in KINDS:
            for name, spec in specs.get(kind, {}).items():
                list(self._take(kind, name, spec))

    def review(self, given: Given) -> Verdict:
        """Take over what the API says now."""
        problems: list[Problem] = []
        unusable: set[tuple[str, str]] = set()
        self._awaited.clear()
        for problem in self._review_objects(given):
            problems.append(problem)
            if problem.name not in self._records.get(problem.kind, {}):
                unusable.add((problem.kind, problem.name))
        problems += self._keep_named_filters(given)
        problems += self._review_nodes(given)
        names = (parse.DEFAULT, f"node.{self._node_name}")
        if any((parse.CONFIGURATION, name) in unusable for name in names):
            return Verdict(None, tuple(sorted(problems)), frozenset(), certain=False)
        others = {name.removeprefix("node.") for kind, name in unusable if kind == parse.CONFIGURATION}
        asked = _Asked(self.passwords)
        found = self._topology(others, asked)
        wanted = frozenset(key.name for key in asked.keys_asked | self._awaited)
        if found.speaker is not None:
            for key in self.passwords.keys() - asked.keys_asked:
                del self.passwords[key]
        if rotated := list(self._review_passwords(asked.keys_asked, given)):
            problems += [problem for problem in rotated if problem is not None]
            found = self._topology(others, self.passwords)
        own = merged(self._node_name, self._records[parse.CONFIGURATION].values())
        problems += unknown_communities(own)
        told = {*problems, *(problem for problem in found.problems if not self._is_early(problem, given))}
        return Verdict(found.speaker, tuple(sorted(told)), wanted, configuration=own)

    def _is_early(self, problem: Problem, given: Given) -> bool:
        """Whether it says of a Secret that is about to be read that it is not there."""
        if problem.kind == parse.FILTER or problem.field != _field_of(problem.kind):
            return False
        record = self._records.get(problem.kind, {}).get(problem.name)
        return record is not None and given.awaits(_password_of(record))

    def _topology(self, without: set[str], passwords: Passwords) -> Any:
        nodes = [node for node in self._nodes.values() if node.name not in without]
        filters, configurations, peers = (self._records[kind].values() for kind in KINDS)
        return topology(self._node_name, nodes, configurations, peers, filters, passwords)

    def _take(self, kind: str, name: str, spec: object, given: Given | None = None) -> Iterator[Problem]:
        """Take an object over; tells why not, and leaves the last one in force then."""
        if name in self.specs[kind] and self.specs[kind][name] == spec:
            return
        try:
            record: Any = _READERS[kind](name, spec)
        except parse.Bad as error:
            yield from error.problems
            return
        key = _password_of(record)
        if given and name in self._records[kind] and not self._has(key, given):
            # Without its new password the session would end; it goes on with the old settings.
            assert key is not None
            self._awaited.add(key)
            if not given.awaits(key):
                yield Problem(kind, name, _field_of(kind), _no_key(key, given))
            return
        if given and name in self._records[kind] and (unknown := self._unknown_filters(record)):
            # The same, and the filter may have been declared with it: of two kinds, either is heard of first.
            yield Problem(kind, name, "filters", f"there is no BGPFilter {', '.join(unknown)}")
            return
        self._records[kind][name], self.specs[kind][name] = record, spec

    def _unknown_filters(self, record: BGPConfiguration | BGPPeer | BGPFilter) -> list[str]:
        named = record.filters if isinstance(record, BGPPeer) else ()
        return [name for name in named if name not in self._records[parse.FILTER]]

    def _has(self, key: SecretKey | None, given: Given) -> bool:
        return key is None or key in self.passwords or key.key in (given.secrets.get(key.name) or {})

    def _review_objects(self, given: Given) -> Iterator[Problem]:
        for kind in KINDS:
            present = given.specs.get(kind, {})
            for name, spec in present.items():
                if isinstance(spec, Unreadable):
                    found: tuple[Problem, ...] = (Problem(kind, name, "spec", spec.reason),)
                else:
                    found = tuple(self._take(kind, name, spec, given))
                words = _KEPT if name in self._records[kind] else _LEFT_OUT
                yield from (replace(problem, reason=problem.reason + words) for problem in found)
                yield from parse.unknown(kind, name, spec)
            if kind != parse.FILTER:
                for name in self._records[kind].keys() - present.keys():
                    self._forget(kind, name)

    def _forget(self, kind: str, name: str) -> None:
        del self._records[kind][name], self.specs[kind][name]

    def _keep_named_filters(self, given: Given) -> Iterator[Problem]:
        """A filter that is gone stays as long as somebody names it: without it a peer would get everything."""
        named: dict[str, str] = {}
        for peer in self._records[parse.PEER].values():
            for name in peer.filters:
                named.setdefault(name, peer.name)
        for name in sorted(self._records[parse.FILTER].keys() - given.specs.get(parse.FILTER, {}).keys()):
            if name in named:
                reason = f"BGPFilter {name} is gone{_KEPT}"
                yield Problem(parse.PEER, named[name], "filters", reason)
            else:
                self._forget(parse.FILTER, name)

    def _review_nodes(self, given: Given) -> Iterator[Problem]:
        """A node with a setting that cannot be used stays as it was; one that never was good takes no part.

        This node stays while its object is gone: that must not end its sessions.
        """
        for name in self._nodes.keys() - given.nodes.keys() - {self._node_name}:
            del self._nodes[name]
        for name, node in given.nodes.items():
            found = given.node_problems.get(name, ())
            if not found:
                self._nodes[name] = node
            words = _KEPT if name in self._nodes else "; the node takes no part in BGP"
            yield from (replace(problem, reason=problem.reason + words) for problem in found)

    def _review_passwords(self, keys: set[SecretKey], given: Given) -> Iterator[Problem | None]:
        """Take rotated passwords over; yields something if there was anything to say or to take."""
        for key in sorted(keys, key=lambda key: (key.name, key.key)):
            if key.name not in given.secrets:
                continue
            value = (given.secrets[key.name] or {}).get(key.key)
            known = self.passwords.get(key)
            if value == known:  # also where neither is there, which the topology tells
                continue
            try:
                if value is None:
                    raise BGPConfigError(f"{key.key}: the Secret does not exist, or does not have the key")
                self.passwords[key] = fields.check_password(key.key, value)
                yield None
            except BGPConfigError as error:
                reason = str(error).partition(": ")[2]
                yield Problem("Secret", key.name, key.key, reason + (_KEPT if known else _LEFT_OUT))


def _password_of(record: BGPConfiguration | BGPPeer | BGPFilter) -> SecretKey | None:
    match record:
        case BGPConfiguration():
            return record.node_mesh_password
        case BGPPeer():
            return record.password
    return None


def _field_of(kind: str) -> str:
    return "nodeMeshPassword" if kind == parse.CONFIGURATION else "password"


def _no_key(key: SecretKey, given: Given) -> str:
    if key.name in given.secrets:
        return f"there is no key {key.key} in a Secret {key.name}"
    return f"the Secret {key.name} cannot be read; see the agent's log, and whether its Role names it"


class _Asked(dict[SecretKey, str]):
    """Passwords that note which ones were asked for."""

    def __init__(self, passwords: Passwords) -> None:
        super().__init__(passwords)
        self.keys_asked: set[SecretKey] = set()

    def get(self, key: SecretKey, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)
