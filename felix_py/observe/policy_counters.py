"""Metrics of allowed and denied packets by policy, from the counters of the kernel's rules.

The kernel counts per rule and resets the counters when a chain is rewritten; the metrics only grow. Packets of
established connections do not pass these rules: mostly the first packets of connections are counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct, field
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from felix_py import log
from felix_py.dataplane.backend import ToolError
from felix_py.dataplane.counters import RuleCount
from felix_py.desired.deny_log import DropKind
from felix_py.desired.names import DenyChain, DispatchChain, Fixed, parse_chain_name
from felix_py.observe.chain_names import ChainNames
from policy.ir import ChainId, ChainKind
from policy.model import ClusterPolicy, Direction, Family, PolicyKind, PolicyRef, Tier

MOST_SERIES = 500
"""Policies (and classes) with series of their own; further ones are summed up as ``other``."""

_OTHER = "other"
_FRESH_SECONDS = 5.0
"""Two scrapes within this time see the same counts."""
_WAIT_SECONDS = 5.0
"""A scrape that waits longer for new counts gets the old ones."""

_ANY = "any"
_DENIED = "denied"
_VERDICTS = {Fixed.ALLOW: "allowed", Fixed.PASS: "passed", "DROP": _DENIED}
"""The verdict of a rule's target."""

_STATIC: dict[Fixed, tuple[Direction | None, DropKind]] = {
    Fixed.SOURCE: (Direction.EGRESS, DropKind.SOURCE),
    Fixed.SPOOFED: (Direction.EGRESS, DropKind.SOURCE),
    Fixed.NEIGHBOUR: (Direction.EGRESS, DropKind.SOURCE),
    Fixed.INVALID: (None, DropKind.INVALID),
    Fixed.MIDSTREAM: (None, DropKind.MIDSTREAM),
    Fixed.PROXIED: (None, DropKind.PROXIED),
    Fixed.ERROR: (Direction.EGRESS, DropKind.ERROR),
    Fixed.ASTRAY: (Direction.INGRESS, DropKind.ASTRAY),
    Fixed.INPUT: (Direction.EGRESS, DropKind.HOST),
}

MEANINGS = {
    "felix_py_denied_packets": "all packets dropped; the reasons are those of "
    "[Who was denied?](operations.md#who-was-denied)",
    "felix_py_class_denied_packets": "of these, what no policy of a class allowed; `class` is the end of the "
    "chain's name (`FELIX-CI-…`)",
    "felix_py_policy_packets": "what the rules of a policy decided (`allowed`, `denied`, `passed`); `policy` is "
    "as `NetworkPolicy/shop/db`",
    "felix_py_policy_bytes": "the bytes of what `felix_py_policy_packets_total` counts",
}
"""What each metric says to an operator, as :attr:`felix_py.metrics.Metrics.meanings`."""

Labels = tuple[str, ...]


class Count(Struct):
    """Packets and bytes."""

    packets: int = 0
    bytes: int = 0

    def add(self, more: Count) -> None:
        """Add another count."""
        self.packets += more.packets
        self.bytes += more.bytes


class ChainCount(Struct, frozen=True):
    """A chain's reading. ``rules``: their hashes, which change with its content; ``counts``: by verdict."""

    rules: tuple[str, ...]
    counts: Mapping[str, Count]


Reading = Mapping[str, ChainCount]
"""Chains by name, of one family."""


def digest(rules: Iterable[RuleCount]) -> Reading:
    """Returns the sums by chain and verdict of the counters that were read."""
    chains: dict[str, list[RuleCount]] = {}
    for rule in rules:
        chains.setdefault(rule.chain, []).append(rule)
    return {name: ChainCount(tuple(r.hash for r in found), _sums(name, found)) for name, found in chains.items()}


class _Slots(Struct):
    """Names with series of their own: the first ``most`` ones, as long as they exist."""

    most: int
    held: set[str] = field(default_factory=set)

    def name(self, wanted: str) -> str:
        if wanted in self.held or len(self.held) < self.most:
            self.held.add(wanted)
            return wanted
        return _OTHER


class Accounts:
    """Sums that only grow, of readings that may be reset at any time. No I/O."""

    def __init__(
        self,
        chains: ChainNames,
        cluster_policies: Callable[[], Iterable[ClusterPolicy]] = tuple,
        most: int = MOST_SERIES,
    ) -> None:
        """``cluster_policies``: those of the Admin and the Baseline tier, for the tier label."""
        self._chains = chains
        self._cluster_policies = cluster_policies
        self._tiers: dict[PolicyRef, Tier] = {}
        self._policy_slots = _Slots(most)
        self._class_slots = _Slots(most)
        self._seen: dict[Family, Reading] = {}
        self._policy_of: dict[str, str] = {}
        self.policies: dict[Labels, Count] = {}
        """By (tier, policy, direction, verdict)."""
        self.classes: dict[Labels, Count] = {}
        """Denied, by (direction, class)."""
        self.denied: dict[Labels, Count] = {}
        """By (direction, reason)."""

    def take(self, family: Family, now: Reading) -> None:
        """Add one family's counters. The first reading is only the base of later ones: the previous process has
        reported what was counted before.
        """
        self._tiers = {policy.ref: policy.tier for policy in self._cluster_policies()}
        before = self._seen.get(family)
        self._seen[family] = now
        for chain, seen in now.items():
            old = seen if before is None else before.get(chain)
            known = old.counts if old and old.rules == seen.rules else {}
            for verdict, count in seen.counts.items():
                self._add(chain, verdict, _growth(count, known.get(verdict)))
        self._forget()

    def _add(self, chain: str, verdict: str, more: Count) -> None:
        match parse_chain_name(chain):
            case ChainId(ChainKind.POLICY, direction) as policy:
                self._add_policy(chain, policy, verdict, more)
                if verdict == _DENIED:
                    self._add_denied(direction, DropKind.POLICY, more)
            # Only denied: a pod's packets to itself are allowed by no policy.
            case ChainId(ChainKind.CLASS, direction, digest) if verdict == _DENIED:
                label = digest if self._class_slots.name(chain) == chain else _OTHER
                self.classes.setdefault((direction.lower(), label), Count()).add(more)
                self._add_denied(direction, DropKind.ISOLATED, more)
            case DispatchChain(direction):
                self._add_denied(direction, DropKind.CLASS, more)
            case Fixed() as fixed if fixed in _STATIC:
                self._add_denied(*_STATIC[fixed], more)

    def _add_policy(self, chain: str, policy: ChainId, verdict: str, more: Count) -> None:
        policies = self._chains.policies(policy)
        if not policies:
            return
        ref = policies[0]
        tier = Tier.NETWORK if ref.kind is PolicyKind.NETWORK else self._tiers.get(ref)
        name = self._policy_slots.name("/".join(filter(None, ref)))
        labels = (_OTHER, _OTHER) if name == _OTHER else (tier.value if tier else "", name)
        self._policy_of[chain] = name
        self.policies.setdefault((*labels, policy.direction.lower(), verdict), Count()).add(more)

    def _add_denied(self, direction: Direction | None, reason: DropKind, more: Count) -> None:
        key = (direction.lower() if direction else _ANY, reason.value)
        self.denied.setdefault(key, Count()).add(more)

    def _forget(self) -> None:
        """Remove the series of chains that no family has any more; the sums of ``other`` and of reasons stay."""
        live = {chain for seen in self._seen.values() for chain in seen}
        self._policy_of = {chain: name for chain, name in self._policy_of.items() if chain in live}
        self._policy_slots.held &= set(self._policy_of.values())
        self._class_slots.held &= live
        kept = {*self._policy_slots.held, _OTHER}
        self.policies = {labels: count for labels, count in self.policies.items() if labels[1] in kept}
        held = map(parse_chain_name, self._class_slots.held)
        classes = {_OTHER, *(chain.digest for chain in held if isinstance(chain, ChainId))}
        self.classes = {labels: count for labels, count in self.classes.items() if labels[1] in classes}


def _sums(chain: str, rules: Sequence[RuleCount]) -> dict[str, Count]:
    """The counts of one chain by verdict. A chain that is no policy's can drop with its last rule only."""
    sums: dict[str, Count] = {}
    of = parse_chain_name(chain)
    is_policy = isinstance(of, ChainId) and of.kind is ChainKind.POLICY
    deciding = [rule for rule in rules if not rule.is_seal]
    for rule in deciding if is_policy else deciding[-1:]:
        denies = isinstance(parse_chain_name(rule.target), DenyChain)
        verdict = _DENIED if denies else _VERDICTS.get(rule.target)
        if verdict == _DENIED or (verdict and is_policy):
            sums.setdefault(verdict, Count()).add(Count(rule.packets, rule.bytes))
    return sums


def _growth(now: Count, before: Count | None) -> Count:
    """The growth since the last reading; ``before`` None: the chain is new or rewritten. Smaller counters were
    reset by another program."""
    if before is None or now.packets < before.packets or now.bytes < before.bytes:
        return now
    return Count(now.packets - before.packets, now.bytes - before.bytes)


class PolicyCounters(Collector):
    """Reads the counters at scrapes, in a thread of its own."""

    def __init__(
        self, accounts: Accounts, families: Iterable[Family], read: Callable[[Family], list[RuleCount]]
    ) -> None:
        """``read`` blocks and may raise ToolError."""
        self._accounts = accounts
        self._families = tuple(families)
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="counters")
        self._running: asyncio.Task[None] | None = None
        self._read_at = float("-inf")
        self._failure = ""
        self._log = log.get("counters")

    def close(self) -> None:
        """End the thread after a running reading."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def refresh(self) -> None:
        """Return when the counts are a few seconds old at most, or after a time limit."""
        if self._running is None:
            if time.monotonic() - self._read_at < _FRESH_SECONDS:
                return
            self._running = asyncio.create_task(self._refresh())
        await asyncio.wait((self._running,), timeout=_WAIT_SECONDS)

    def _reading(self, family: Family) -> Reading:
        return digest(self._read(family))

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        failure = ""
        try:
            for family in self._families:
                reading = await loop.run_in_executor(self._thread, self._reading, family)
                self._accounts.take(family, reading)
        except ToolError as error:
            failure = str(error)
        except Exception as error:
            self._log.exception("cannot read the counters of rules")
            failure = repr(error)
        finally:
            self._running = None
            self._read_at = time.monotonic()
        if failure and failure != self._failure:
            self._log.warning("cannot read the counters of rules; metrics stay as they are", reason=failure)
        self._failure = failure

    def describe(self) -> Iterable[Metric]:
        """Nothing before the first scrape, which would be a reading (prometheus_client asks at registration)."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        accounts = self._accounts
        by_policy = ("tier", "policy", "direction", "verdict")
        about = "that rules of a policy decided (its first packets, as a rule), by policy"
        packets = CounterMetricFamily("felix_py_policy_packets", f"Packets {about}", labels=by_policy)
        size = CounterMetricFamily("felix_py_policy_bytes", f"Bytes of packets {about}", labels=by_policy)
        for labels, count in sorted(accounts.policies.items()):
            packets.add_metric(labels, count.packets)
            size.add_metric(labels, count.bytes)
        by_class, by_reason = ("direction", "class"), ("direction", "reason")
        unallowed = "Packets that no policy of a class allowed"
        classes = CounterMetricFamily("felix_py_class_denied_packets", unallowed, labels=by_class)
        for labels, count in sorted(accounts.classes.items()):
            classes.add_metric(labels, count.packets)
        denied = CounterMetricFamily("felix_py_denied_packets", "Packets dropped, by reason", labels=by_reason)
        for labels, count in sorted(accounts.denied.items()):
            denied.add_metric(labels, count.packets)
        yield from (packets, size, classes, denied)
