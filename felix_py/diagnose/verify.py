"""Comparison of a node's whole kernel state with the intended one.

The cluster, the leases and the kernel cannot be read at one moment, and an agent may be writing. So differences
are read again a moment later, and only those that persist count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from felix_py.dataplane.service_drops import ServiceDrops
from felix_py.dataplane.uplink import interface_state
from felix_py.datastore.fetch import Fetched
from felix_py.diagnose import compare_objects
from felix_py.diagnose.agent_says import AgentSays
from felix_py.diagnose.compare_rules import RuleComparison
from felix_py.diagnose.difference import Difference, Problem
from felix_py.diagnose.intended import Intended, Settings, intended, known
from felix_py.diagnose.live import Live
from felix_py.diagnose.owners import Owners
from felix_py.layout import ROUTE_PROTOCOL_LEARNED, ROUTE_PROTOCOL_PODS
from felix_py.records import Lease
from felix_py.refs import ServiceDropRef

SECOND_LOOK = 1.5
"""Seconds until differences are read again: an agent writes changes well within that."""


@dataclass(frozen=True, slots=True)
class Look:
    """The sources of the intended state, read at one moment. ``agent`` None: none answers."""

    cluster: Fetched
    leases: tuple[Lease, ...]
    agent: AgentSays | None


@dataclass(slots=True)
class Findings:
    """``compared``: number of objects by kind. ``notes``: what was left out, and why."""

    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compared: dict[str, int] = field(default_factory=dict)


def verify(
    settings: Settings,
    look: Callable[[], Look],
    live: Callable[[], Live],
    pause: Callable[[float], None] = time.sleep,
) -> Findings:
    """Compare; differences are read twice. ``look`` and ``live`` read everything anew at each call.

    Raises:
        ToolError, OSError: the kernel cannot be read.
        ApiError, Unreachable, StoreError: the cluster or the leases cannot.
    """
    first = _compare(settings, look(), live)
    if not first.differences:
        return first
    pause(SECOND_LOOK)
    second = _compare(settings, look(), live)
    keys = {one.key for one in first.differences}
    second.differences = [one for one in second.differences if one.key in keys]
    return second


def _compare(settings: Settings, seen: Look, live: Callable[[], Live]) -> Findings:
    with live() as kernel:
        present = [lease for lease in seen.leases if interface_state(lease.interface) is not None]
        learned, metrics = (seen.agent.learned, seen.agent.metrics) if seen.agent else ({}, {})
        wanted = intended(settings, seen.cluster, present, learned, metrics, kernel.rules, kernel.sets)
        found = Findings(notes=[*_notes(seen, wanted, present), *kernel.notes])
        found.differences = list(_differences(settings, seen, wanted, kernel, found.compared))
    return found


def _notes(seen: Look, wanted: Intended, present: list[Lease]) -> Iterator[str]:
    if seen.agent is None:
        yield "no agent answers, so learned routes were not compared, nor were drops for Services"
    elif seen.agent.unready:
        yield f"the agent is not in sync yet: {seen.agent.unready}"
    elif not seen.agent.settled:
        yield "not every BGP peer is established, so learned routes that are too many do not count"
    if not wanted.complete:
        with_pod = known(present, seen.cluster)
        pods = sorted({lease.owner_text for lease in present if lease not in with_pod})
        yield f"{', '.join(pods)}: still on this node, but not in the API any more, so not compared"


def _differences(
    settings: Settings, seen: Look, wanted: Intended, kernel: Live, compared: dict[str, int]
) -> Iterator[Difference]:
    owners = Owners(wanted, seen.cluster)
    families = (*settings.families, *settings.closed)
    strays, update = wanted.complete, wanted.update
    # The agent may, or (after a restart) may not know the addresses of an interface that is gone.
    standing = {address for lease in wanted.leases for address in lease.addresses.values()}
    pardoned = {address for lease in seen.leases for address in lease.addresses.values()} - standing
    for family in families:
        rules = RuleComparison(family, update, kernel.rules(family), owners)
        chains, lines = rules.counted
        compared["chains"] = compared.get("chains", 0) + chains
        compared["rules"] = compared.get("rules", 0) + lines
        yield from rules.differences(strays=strays)
    compared["sets"] = len(update.sets)
    compared["members"] = sum(map(len, update.members.values()))
    yield from compare_objects.set_differences(update, owners, pardoned, strays=strays)
    yield from _routes(settings, seen, wanted, owners, pardoned, compared)
    if seen.agent is not None and seen.agent.service_drops is not None:
        yield from _service_drops(settings, seen.agent.service_drops, compared)
    compared["interfaces"] = len(seen.leases)
    yield from compare_objects.interface_differences(seen.leases)
    yield from compare_objects.setting_differences(settings.families)


def _service_drops(
    settings: Settings, prefixes: tuple[str, ...], compared: dict[str, int]
) -> Iterator[Difference]:
    compared["service prefixes"] = len(prefixes)
    missing, surplus = ServiceDrops((*settings.families, *settings.closed)).differences(prefixes)
    about = "packets for announced Service addresses that no Service takes"
    for text in missing:
        yield Difference(ServiceDropRef(text), Problem.MISSING, about)
    for text in surplus:
        yield Difference(ServiceDropRef(text), Problem.EXTRA, about)


def _routes(
    settings: Settings, seen: Look, wanted: Intended, owners: Owners, pardoned: set[str], compared: dict[str, int]
) -> Iterator[Difference]:
    protocols = {ROUTE_PROTOCOL_PODS: wanted.complete}
    if seen.agent is not None:
        protocols[ROUTE_PROTOCOL_LEARNED] = seen.agent.settled and not seen.agent.unready
    compared["routes"] = sum(key.protocol in protocols for key in wanted.update.routes)
    for protocol, strays in protocols.items():
        yield from compare_objects.route_differences(
            wanted.update, (*settings.families, *settings.closed), (protocol,), owners, pardoned, strays=strays
        )
