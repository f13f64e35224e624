"""Reads the ``/status`` of a running agent from its socket."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from felix_py.desired.static import StaticOptions
from felix_py.observe.ask import connection
from felix_py.records import Backend
from policy.model import Family

_TIMEOUT = 3.0


class Configuration(msgspec.Struct, frozen=True, rename="camel"):
    """The agent's settings that decide the intended kernel state."""

    backend: Backend
    families: tuple[Family, ...]
    cluster_cidrs: tuple[str, ...]
    rules: StaticOptions
    announced: bool = False


@dataclass(frozen=True, slots=True)
class AgentSays:
    """``learned``: best routes, prefix -> gateways; ``metrics``: of those that have another one than the default.

    ``service_drops``: Service prefixes that are dropped where no Service takes them; None: not known.
    ``settled``: every configured BGP peer is established.
    """

    node: str
    configuration: Configuration
    unready: str = ""
    learned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: dict[str, int] = field(default_factory=dict)
    service_drops: tuple[str, ...] | None = None
    settled: bool = True


def ask(place: str) -> AgentSays | None:
    """Returns the agent's status, or None if none of this version answers. ConfigError: ``place`` is invalid."""
    answer = status(place)
    return None if answer is None else _read(answer)


def status(place: str) -> dict[str, Any] | None:
    """Returns the agent's status as JSON, or None if no agent answers. ConfigError: ``place`` is invalid."""
    asked = connection(place, _TIMEOUT)
    try:
        asked.request("GET", "/status")
        answer = asked.getresponse()
        if answer.status != 200:
            return None
        found = json.loads(answer.read())
        return found if isinstance(found, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        asked.close()


def _read(status: dict[str, Any]) -> AgentSays | None:
    try:
        return AgentSays(
            node=status["node"],
            configuration=msgspec.convert(status["configuration"], Configuration),
            unready=status["unready"] or "",
            learned={prefix: tuple(hops) for prefix, hops in status["routes"].items()},
            metrics={prefix: int(metric) for prefix, metric in status.get("routeMetrics", {}).items()},
            service_drops=None if (drops := status.get("serviceDrops")) is None else tuple(drops),
            settled=all(peer["established"] for peer in status["peers"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None
