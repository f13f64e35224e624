"""Flows seen lately, asked from agents, and those of them that a change of policies would deny."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from felix_py.cli.plan_report import Flows
from felix_py.observe.ask import check, connection
from policy.impact.compare import Changes, newly_denied
from policy.model import Packet, Protocol
from policy.oracle.evaluate import Snapshot
from policy.syntax import canonical_address

_TIMEOUT = 5.0
"""Seconds for an agent's answer."""


def check_places(agents: Sequence[str]) -> None:
    """Raises ConfigError if one is neither the path of an agent's socket nor a URL."""
    for place in agents:
        check(place)


def seen_lately(
    agents: Sequence[str], cluster: Snapshot, changes: Changes, ask: Callable[[str], object] | None = None
) -> Flows:
    """Ask the agents one after the other. Those that do not answer are in ``silent``."""
    ask = ask or _get
    flows = Flows()
    packets: dict[Packet, None] = {}
    for url in agents:
        try:
            packets |= dict.fromkeys(_packets(ask(url)))
            flows.agents.append(url)
        except (OSError, ValueError, http.client.HTTPException) as problem:
            flows.silent[url] = _words(problem)
    flows.seen = len(packets)
    flows.denied = newly_denied(cluster, changes, packets)
    return flows


def _get(place: str) -> object:
    """An agent's flows; OSError or HTTPException without an answer, ValueError for another one."""
    with closing(connection(place, _TIMEOUT)) as asked:
        asked.request("GET", "/flows")
        answer = asked.getresponse()
        if answer.status == 404:
            raise ValueError("this agent tells no flows")
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status} {answer.reason}")
        return json.loads(answer.read())


def _packets(flows: object) -> Iterator[Packet]:
    """The flows that policy can judge (not ICMP, for one); ValueError if it is no list of flows."""
    if not isinstance(flows, list):
        raise ValueError("its answer is no list of flows")
    for flow in flows:
        try:
            ends = canonical_address(flow["source"]), canonical_address(flow["destination"])
            yield Packet(*ends, Protocol(flow["protocol"].upper()), int(flow["port"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _words(problem: Exception) -> str:
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return " ".join(str(problem).split()) or type(problem).__name__
