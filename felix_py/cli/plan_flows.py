"""Flows seen lately, from the agents that saw them, and which of them a change of policies would deny."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from urllib import error, request

from felix_py.cli.plan_report import Flows
from felix_py.config import ConfigError
from policy.evaluate import Snapshot
from policy.impact import Changes, newly_denied
from policy.model import Packet, Protocol
from policy.syntax import canonical_address

_TIMEOUT = 5.0
"""Seconds that an agent may take to tell its flows."""


def check_urls(agents: Sequence[str]) -> None:
    """Raises:
    ConfigError: one is not a URL of an agent.
    """
    for url in agents:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--agent {url}: must be a URL, such as http://127.0.0.1:9099")


def seen_lately(agents: Sequence[str], cluster: Snapshot, changes: Changes) -> Flows:
    """Ask the agents, one after the other. One that does not answer is named, and the others count."""
    flows = Flows()
    packets: dict[Packet, None] = {}
    for url in agents:
        try:
            packets |= dict.fromkeys(_packets(_get(url.rstrip("/") + "/flows")))
            flows.agents.append(url)
        except (OSError, ValueError) as problem:
            flows.silent[url] = _words(problem)
    flows.seen = len(packets)
    flows.denied = newly_denied(cluster, changes, packets)
    return flows


def _get(url: str) -> object:
    # Agents are asked directly: a proxy of the environment is for the world outside.
    opener = request.build_opener(request.ProxyHandler({}))
    with opener.open(url, timeout=_TIMEOUT) as answer:
        found: object = json.load(answer)
    return found


def _packets(flows: object) -> Iterator[Packet]:
    """The flows that policy can judge; ICMP, for one, it cannot.

    Raises:
        ValueError: it is no list of flows.
    """
    if not isinstance(flows, list):
        raise ValueError("its answer is no list of flows")
    for flow in flows:
        try:
            ends = canonical_address(flow["source"]), canonical_address(flow["destination"])
            yield Packet(*ends, Protocol(flow["protocol"].upper()), int(flow["port"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _words(problem: Exception) -> str:
    match problem:
        case error.HTTPError(code=404):
            return "this agent tells no flows"
        case error.URLError(reason=reason):
            return getattr(reason, "strerror", None) or str(reason)
    return " ".join(str(problem).split()) or type(problem).__name__
