"""The settings that an agent starts with, before anything is made of them.

FelixConfigurations are read once, for three seconds at most: until the agent is built nothing guards the
kernel. If they cannot be read, the last good copy counts, which the agent's last life wrote as soon as
something changed. So nothing is weaker than before the restart. Without a copy the built-in settings count, and
if the objects then turn out to say anything else that needs a restart, the agent ends before it writes to the
kernel (:mod:`felix_py.agent.configured`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from msgspec import Struct

from felix_py import log
from felix_py.agent.families import Families
from felix_py.agent.last_good import LastGood
from felix_py.config import AgentConfig, ConfigError
from felix_py.dataplane.backend import ToolError, find_backend
from felix_py.datastore.client import ApiError, Unreachable, connect
from felix_py.datastore.fetch import configurations
from felix_py.layers import LAST_GOOD, Judge, Values, effective, merge, still_usable
from felix_py.records import ConfigurationRecord

_PATIENCE = 3.0
"""Seconds for the API server's answer, name resolution and TLS included."""

Read = Callable[[AgentConfig], list[ConfigurationRecord]]
"""Reads the objects; raises ApiError, Unreachable or ConfigError."""


class Start(Struct, frozen=True, kw_only=True):
    """What an agent starts with.

    ``base``: command line, environment and built-in settings; ``given``: names of those from the first two.
    ``values`` and ``sources``: the objects' part. ``known``: it was read from the API server just now.
    ``certain``: if not, it is a good copy. ``words``: why not, for people.
    """

    config: AgentConfig
    base: AgentConfig
    given: frozenset[str] = frozenset()
    values: Values
    sources: dict[str, str]
    known: bool
    certain: bool
    words: str = ""


def without_objects(config: AgentConfig) -> Start:
    """A start with these settings alone."""
    return Start(config=config, base=config, values={}, sources={}, known=False, certain=True)


def start(base: AgentConfig, given: Collection[str]) -> Start:
    """Settle the settings. Never fails for what the API server, the objects or the disk say."""
    return settle(base, given, read_in_time)


def settle(base: AgentConfig, given: Collection[str], read: Read, judge: Judge | None = None) -> Start:
    """As :func:`start`, with another way to read and to judge."""
    judge = judge or unusable_here
    copy = LastGood(base.state_dir).read()
    good = still_usable(copy.values or {}, judge)
    values, sources, words = good, dict.fromkeys(good, LAST_GOOD), ""
    try:
        merged = merge(base.node_name, read(base), good, judge)
    except (ApiError, Unreachable, ConfigError) as error:
        words = _words(error, copied=copy.values is not None, problem=copy.problem)
        absent = isinstance(error, ApiError) and error.status == 404 and not good
        (log.get("agent").info if absent else log.get("agent").warning)(words)
    else:
        values, sources = merged.values, dict(merged.sources)
    return Start(
        config=effective(base, given, values),
        base=base,
        given=frozenset(given),
        values=values,
        sources=sources,
        known=not words,
        certain=not words or copy.values is not None,
        words=words,
    )


def _words(error: Exception, *, copied: bool, problem: str) -> str:
    instead = "the last good copy" if copied else "the settings of command line and environment alone"
    lost = f" ({problem})" if problem else ""
    return f"FelixConfigurations cannot be read, starting with {instead}{lost}: {error}"


def unusable_here(name: str, value: Any) -> str:
    """Why this node cannot use a setting's value that is right in itself, or empty."""
    try:
        if name == "backend":
            find_backend(value) if value is not None else None
        elif name == "ip_families":
            Families.of_this_node(value)
    except ToolError as error:
        return f"not on this node: {error}"
    except ConfigError as error:
        return f"not on this node: {str(error).partition(': ')[2] or error}"
    return ""


def read_in_time(config: AgentConfig) -> list[ConfigurationRecord]:
    """Read the objects in a thread of its own, which is left behind if the answer takes too long.

    Raises:
        ApiError: the server refuses.
        ConfigError: there is no usable configuration of the access.
        Unreachable: no answer in time.
    """
    found: list[list[ConfigurationRecord]] = []
    failed: list[Exception] = []

    def read() -> None:
        try:
            api = connect(config.kubeconfig)
            try:
                found.append(configurations(api))
            finally:
                api.close()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=read, name="configuration", daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    with suppress(IndexError):
        return found[0]
    if failed and isinstance(failed[0], ApiError | Unreachable | ConfigError):
        raise failed[0]
    raise Unreachable(str(failed[0]) if failed else f"no answer in {_PATIENCE:.0f} seconds")
