"""The deny log as a part of the agent: the probe for it, its rules, reader, events and HTTP routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from felix_py import log
from felix_py.config import AgentConfig
from felix_py.dataplane.probe import refusal
from felix_py.desired.deny_log import SOURCE_DROP, DenyLog
from felix_py.metrics import Metrics
from felix_py.observe.chain_names import ChainNames
from felix_py.observe.denies import Denies
from felix_py.observe.deny_events import Describer
from felix_py.observe.deny_reader import DenyReader
from felix_py.records import Backend
from policy.model import Family, ObjectKey
from policy.oracle.evaluate import View

if TYPE_CHECKING:
    from aiohttp import web

    from felix_py.observe.deny_http import DenyRoutes

_OFF = "the deny log is switched off on this node (--no-deny-log)"


class DenyLogging:
    """Denied packets of this node, for HTTP clients and the agent's log. Nothing here decides about a packet."""

    def __init__(
        self,
        config: AgentConfig,
        families: Sequence[Family],
        backend: Backend,
        chain_names: ChainNames,
        endpoint_at: Callable[[str], ObjectKey | None],
        view: View,
        metrics: Metrics,
    ) -> None:
        """``endpoint_at``: the pod of a local interface. Probes the kernel for NFLOG: some ten milliseconds."""
        self.rules = _rules(config, families, backend)
        """For the planner; None: nothing is logged."""
        self._reader: DenyReader | None = None
        self._node = config.node_name
        self._denies: Denies | None = None
        if self.rules:
            describer = Describer(config.node_name, view, chain_names, endpoint_at)
            self._denies = Denies(describer, metrics, lines=config.deny_log_lines)
            self._reader = DenyReader(self.rules.group, self._denies, metrics)
        self._off = _OFF if not config.deny_log else "this node's kernel cannot log denied packets"

    @cached_property
    def _routes(self) -> DenyRoutes:
        from felix_py.observe.deny_http import DenyRoutes

        return DenyRoutes(self._node, self._denies, lambda: self.unavailable)

    @property
    def unavailable(self) -> str | None:
        """Why denied packets are not shown, or None."""
        return self._reader.unavailable if self._reader else self._off

    def routes(self) -> list[web.RouteDef]:
        """HTTP routes for the health server."""
        return self._routes.routes()

    def set_lines(self, lines: bool) -> None:
        """Whether each event is written to the agent's log, too."""
        if self._denies:
            self._denies.lines = lines

    def state(self) -> dict[str, Any]:
        """State for ``/status``."""
        return self._routes.state()

    async def run(self) -> None:
        """Read until cancelled; returns at once if nothing is logged."""
        if self._reader:
            await self._reader.run()


def _rules(config: AgentConfig, families: Sequence[Family], backend: Backend) -> DenyLog | None:
    if not config.deny_log:
        return None
    rules = DenyLog(config.deny_log_group, config.deny_log_rate)
    reason = refusal(families, backend, rules.rule(SOURCE_DROP))
    if reason is None:
        return rules
    # A rule that the kernel refuses would make the whole chain fail.
    log.get("denies").warning("denied packets are not shown: no NFLOG here", reason=reason)
    return None
