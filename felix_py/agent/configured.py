"""Follows the FelixConfigurations while the agent runs: applies what can change, says what needs a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from felix_py import log
from felix_py.agent.last_good import LastGood
from felix_py.agent.starting import Start
from felix_py.config import SETTINGS
from felix_py.datastore import store
from felix_py.datastore.store import Table
from felix_py.layers import Judge, Merged, Problem, Values, effective, merge
from felix_py.notices import NoticeKind, Notices
from felix_py.records import ConfigurationRecord

_TRIES_AGAIN = 60.0
"""Seconds until another try to write the copy."""

_GRACE = 10.0
"""Seconds that the first apply waits for the objects, once all else of the cluster is known."""

_COPY = "copy"
_UNREAD = "not read"
_RESTART = "kubectl -n kube-system rollout restart daemonset felix-py"

Live = Mapping[str, Callable[[Any], None]]
"""Setting's name -> what makes a new value take effect. On the event loop."""

Warn = Callable[[Problem], None]
"""Writes an Event on the object."""


def _unreadable(problem: store.Problem) -> ConfigurationRecord:
    return ConfigurationRecord(problem.key[1], problem.uid, problem=problem.reason)


class StartAnew(Exception):
    """The agent must be started again: it had to start without settings that the objects turn out to have."""


class Configured:
    """The settings in force. On the event loop only."""

    def __init__(
        self,
        begun: Start,
        table: Table[ConfigurationRecord],
        live: Live,
        judge: Judge,
        notices: Notices,
        warn: Warn,
    ) -> None:
        """``live``: one for each setting that is marked so. ``judge`` may read files, in a thread."""
        self._begun = begun
        self._table = table
        self._live = live
        self._judge = judge
        self._notices = notices
        self._warn = warn
        self._copy = LastGood(begun.base.state_dir)
        self._good: Values = begun.values
        self._written: Values | None = None if begun.known or not begun.certain else begun.values
        self._warned: frozenset[Problem] = frozenset()
        self._reviewed = asyncio.Event()
        self._log = log.get("configuration")
        self.config = begun.config
        """The settings that the agent runs with."""
        self.sources: Mapping[str, str] = begun.sources
        """Setting's name -> the object that its value is from; others are from command line, environment or
        built in.
        """
        self.restart_due: tuple[str, ...] = ()
        """Names, as in FelixConfiguration, of settings whose new value needs a restart."""
        if begun.words and begun.values:
            self._notices.say(NoticeKind.CONFIGURATION, _UNREAD, begun.words)

    async def run(self) -> None:
        """Follow the objects until cancelled."""
        await self._table.listed.wait()
        while True:
            self._table.changed.clear()
            try:
                await self._review()
            except Exception:
                # A defect here must not end the agent, which goes on with what is in force.
                self._log.exception("cannot take over the settings")
            self._reviewed.set()
            written = self._written == self._good
            with suppress(TimeoutError):
                await asyncio.wait_for(self._table.changed.wait(), None if written else _TRIES_AGAIN)

    async def settled(self) -> None:
        """Return once the agent may write to the kernel; at once if it started with settings that are certain.

        Raises:
            StartAnew: it started with other settings than the objects have, and they need a restart.
        """
        if self._begun.known or self._begun.certain:
            return
        try:
            await asyncio.wait_for(self._reviewed.wait(), _GRACE)
        except TimeoutError:
            # They may not be read, under the RBAC of an older version. The next start need not wait for them.
            await self._keep(self._good)
        if self.restart_due:
            raise StartAnew(
                f"the FelixConfigurations that could not be read at the start set {', '.join(self.restart_due)}"
            )

    async def _review(self) -> None:
        found = [*self._table.records.values(), *map(_unreadable, self._table.problems.values())]
        node = self._begun.base.node_name
        merged = await asyncio.to_thread(merge, node, found, self._good, self._judge)
        self._notices.clear(NoticeKind.CONFIGURATION, _UNREAD)
        self._take(merged)
        await self._keep(merged.values)
        self._tell(merged)

    def _take(self, merged: Merged) -> None:
        """Make live settings take effect, and note the others."""
        wanted = effective(self._begun.base, self._begun.given, merged.values)
        due = []
        for name, it in SETTINGS.items():
            value = getattr(wanted, name)
            if it.field is None or value == getattr(self.config, name):
                continue
            if name not in self._live:
                due.append(it.field.name)
                continue
            self._live[name](value)
            self.config = effective(self.config, (), {name: value})
            self._log.info("setting changed", setting=it.field.name, value=it.to_field(value))
        self._good, self.sources = merged.values, merged.sources
        self.restart_due = tuple(due)

    async def _keep(self, values: Values) -> None:
        if values == self._written:
            return
        try:
            await asyncio.to_thread(self._copy.write, values)
        except OSError as error:
            text = (
                f"the settings cannot be written to {self._copy.path}: {error.strerror}. Without API server the "
                "agent would start with older ones; make room on the disk, or mend it"
            )
            self._notices.say(NoticeKind.CONFIGURATION, _COPY, text)
        else:
            self._written = values
            self._notices.clear(NoticeKind.CONFIGURATION, _COPY)

    def _tell(self, merged: Merged) -> None:
        due = {
            name: f"{name} of FelixConfiguration has changed, and takes effect when the agent starts again: "
            f"`{_RESTART}`"
            for name in self.restart_due
        }
        self._notices.replace(NoticeKind.RESTART_DUE, due)
        told = {
            f"{problem.name} {problem.field}".strip(): f"FelixConfiguration {problem.name}: {problem}; "
            "the last good value stays in force. Correct it with `kubectl edit`"
            for problem in merged.problems
        }
        kept = self._notices.of(NoticeKind.CONFIGURATION)
        others = {subject: kept[subject] for subject in (_COPY, _UNREAD) if subject in kept}
        self._notices.replace(NoticeKind.CONFIGURATION, told | others)
        now = frozenset(merged.problems)
        for problem in sorted(now - self._warned):
            self._warn(problem)
        self._warned = now
