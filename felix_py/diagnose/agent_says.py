"""What a running agent says of itself (``/status`` of its socket)."""

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
    """The settings that decide what the kernel should hold, as the agent has them."""

    backend: Backend
    families: tuple[Family, ...]
    cluster_cidrs: tuple[str, ...]
    rules: StaticOptions


@dataclass(frozen=True, slots=True)
class AgentSays:
    """``learned``: best routes, prefix -> gateways. ``settled``: every configured peer has told its routes."""

    node: str
    configuration: Configuration
    unready: str = ""
    learned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    settled: bool = True


def ask(place: str) -> AgentSays | None:
    """What decides the kernel's content; None: no agent answers, or one of another version.

    Raises:
        ConfigError: the address is none.
    """
    answer = status(place)
    return None if answer is None else _read(answer)


def status(place: str) -> dict[str, Any] | None:
    """All that the agent of this network namespace says; None: none answers.

    Raises:
        ConfigError: the address is none.
    """
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
            settled=all(peer["established"] for peer in status["peers"]),
        )
    except (KeyError, TypeError, AttributeError, msgspec.ValidationError):
        return None
