"""Follows BGPConfigurations, BGPPeers, BGPFilters, Nodes and the Secrets that they name, while the agent runs.

What they make of this node's speaker is decided in :mod:`bgp.declared`, in a thread: the nodes may be thousands.
What was good last is kept in files, so that an object that is spoilt while no agent runs ends no session:
the resources on disk, the passwords beside the sockets, which a reboot takes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bgp import parse
from bgp.declared import KINDS, Declared, Given, Specs, Unreadable, Verdict
from bgp.model import SpeakerConfig
from bgp.node import bgp_node
from bgp.resources import BGPConfiguration, BGPNode, Problem, SecretKey
from felix_py import log
from felix_py.agent.events import any_of
from felix_py.agent.last_good import Kept
from felix_py.config import AgentConfig
from felix_py.datastore.kinds import BGP_KINDS
from felix_py.datastore.named_secrets import NamedSecrets
from felix_py.datastore.store import Record, Store, Table
from felix_py.notices import NoticeKind, Notices
from felix_py.records import ConfigurationRecord, NodeRecord
from policy.change import Change

_GRACE = 10.0
"""Seconds that the kinds may take to be listed, before what was good last counts."""

_PACE = 0.2
"""Seconds between two reviews at least: a rollout changes all nodes' labels one by one."""

_COPY = "copy"

Warn = Callable[[Problem, str], None]
"""Writes an Event on the object of this uid."""


class DeclaredBgp:
    """What the API declares of this node's speaker. On the event loop only."""

    def __init__(
        self, config: AgentConfig, store: Store, secrets: NamedSecrets, notices: Notices, warn: Warn
    ) -> None:
        """With a ``bgp_config`` file the resources are refused: :attr:`speaker` stays None."""
        self._node_name = config.node_name
        self._file = config.bgp_config
        self._foreign = config.bgp_foreign_annotations
        self._tables: dict[str, Table[ConfigurationRecord]] = {kind.name: store.own(kind) for kind in BGP_KINDS}
        self._secrets = secrets
        self._notices = notices
        self._warn = warn
        self._log = log.get("bgp")
        self._kept_specs = Kept(config.state_dir / "bgp.json")
        self._kept_passwords = Kept(config.run_dir / "bgp-passwords.json")
        self._declared = Declared(
            self._node_name,
            _specs(self._read(self._kept_specs)),
            _passwords(self._read(self._kept_passwords)),
        )
        self._written: tuple[Any, Any] | None = None
        self._unkept = False
        self._nodes: dict[str, tuple[BGPNode, tuple[Problem, ...]]] = {}
        self._nodes_changed = asyncio.Event()
        self._warned: frozenset[Problem] = frozenset()
        self.speaker: SpeakerConfig | None = None
        """What this node's speaker must be; None: no BGP is declared."""
        self.nothing = False
        """It is certain that the API declares no BGP for this node."""
        self.configuration = BGPConfiguration(name=parse.DEFAULT)
        """This node's, as it counts."""
        self.changed = asyncio.Event()
        """Set when one of these has changed; who waits for it clears it."""
        self.decided = asyncio.Event()
        """Set once :attr:`speaker` is known. Never cleared."""
        store.subscribe(self._fold)

    def _read(self, kept: Kept) -> Mapping[str, Any]:
        fields, problem = kept.read()
        if problem:
            self._log.warning("what was declared last is lost", reason=problem)
        return fields or {}

    def _fold(self, changes: Sequence[Change[Record]]) -> None:
        for change in changes:
            if (node := change.of(NodeRecord)) is None:
                continue
            if node.after is None:
                if node.before is not None:
                    self._nodes.pop(node.before.name, None)
            elif node.before is not None and _settings(node.before) == _settings(node.after):
                continue
            else:
                it = node.after
                labels, annotations = dict(it.labels), dict(it.annotations)
                self._nodes[it.name] = bgp_node(it.name, it.addresses, labels, annotations, foreign=self._foreign)
            self._nodes_changed.set()

    async def run(self) -> None:
        """Follow the resources until cancelled. All Nodes must be known."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                for table in self._tables.values():
                    await table.listed.wait()
        events = [*(table.changed for table in self._tables.values()), self._secrets.changed, self._nodes_changed]
        while True:
            for event in events:
                event.clear()
            try:
                await self._review()
            except Exception:
                # A defect here must not end the agent, which goes on with the sessions that it has.
                self._log.exception("cannot take over the BGP resources")
            self.decided.set()
            await asyncio.sleep(_PACE)
            await any_of(events, _GRACE if self._secrets.unread() or self._unkept else None)

    async def _review(self) -> None:
        if self._file is not None:
            self._refuse(self._file)
            return
        given = self._given()
        verdict = await asyncio.to_thread(self._declared.review, given)
        self._secrets.want(verdict.wanted)
        listed = all(table.listed.is_set() for table in self._tables.values())
        before = (self.speaker, self.configuration, self.nothing)
        self.nothing = listed and verdict.certain and verdict.speaker is None
        if verdict.certain:
            self.speaker, self.configuration = verdict.speaker, verdict.configuration
        if before != (self.speaker, self.configuration, self.nothing):
            self.changed.set()
        self._tell(verdict)
        await self._keep()

    def _given(self) -> Given:
        specs: dict[str, Mapping[str, object | Unreadable]] = {}
        for kind, table in self._tables.items():
            if not table.listed.is_set():
                specs[kind] = self._declared.specs[kind].copy()
                continue
            records = table.records.values()
            unreadable = {key[1]: Unreadable(one.reason) for key, one in table.problems.items()}
            specs[kind] = unreadable | {
                one.name: Unreadable(one.problem) if one.problem else one.spec for one in records
            }
        return Given(
            specs=specs,
            nodes={name: node for name, (node, _) in self._nodes.items()},
            node_problems={name: problems for name, (_, problems) in self._nodes.items() if problems},
            secrets=self._secrets.known(),
            overdue=self._secrets.unread(_GRACE),
        )

    def _refuse(self, file: Path) -> None:
        found = [
            f"{kind} {name}"
            for kind in (parse.CONFIGURATION, parse.PEER)
            for _, name in sorted(self._tables[kind].records)
        ]
        text = (
            f"this node has its BGP peers in {file}, so {', '.join(found[:3])}{' …' if len(found) > 3 else ''} "
            "of the API do not count here. Remove the file and start the agent again, or delete them"
        )
        self._notices.replace(NoticeKind.BGP_RESOURCES, {"file": text} if found else {})

    def _tell(self, verdict: Verdict) -> None:
        told: dict[str, str] = {}
        for one in verdict.problems:
            subject = f"{one.kind} {one.name}"
            text = f"{one.field}: {one.reason}"
            told[subject] = f"{told[subject]}; {text}" if subject in told else f"{subject}: {text}"
        if not verdict.certain:
            text = "BGP stays as it is: a BGPConfiguration of this node cannot be used, and never could"
            told["BGP"] = text
        kept = self._notices.of(NoticeKind.BGP_RESOURCES)
        self._notices.replace(NoticeKind.BGP_RESOURCES, told | {_COPY: kept[_COPY]} if _COPY in kept else told)
        now = frozenset(verdict.problems)
        for problem in sorted(now - self._warned):
            if (table := self._tables.get(problem.kind)) is not None:
                record = table.records.get(("", problem.name))
                self._warn(problem, record.uid if record else "")
        self._warned = now

    async def _keep(self) -> None:
        specs = {kind: dict(of_kind) for kind, of_kind in self._declared.specs.items()}
        passwords = {f"{key.name}/{key.key}": value for key, value in self._declared.passwords.items()}
        if (specs, passwords) == self._written or (self._written is None and not any(specs.values())):
            return
        try:
            await asyncio.to_thread(self._kept_specs.write, specs)
            await asyncio.to_thread(self._kept_passwords.write, passwords)
        except OSError as error:
            text = (
                f"the BGP resources cannot be written to {self._kept_specs.path}: {error.strerror}. Where one is "
                "spoilt later, its last good form is lost with the next start. Make room on the disk, or mend it"
            )
            self._notices.say(NoticeKind.BGP_RESOURCES, _COPY, text)
            self._unkept = True
        else:
            self._written, self._unkept = (specs, passwords), False
            self._notices.clear(NoticeKind.BGP_RESOURCES, _COPY)


def _settings(node: NodeRecord) -> object:
    return node.addresses, node.labels, node.annotations


def _specs(fields: Mapping[str, Any]) -> Specs:
    return {kind: fields[kind] for kind in KINDS if isinstance(fields.get(kind), dict)}


def _passwords(fields: Mapping[str, Any]) -> dict[SecretKey, str]:
    pairs = ((where.partition("/"), value) for where, value in fields.items() if isinstance(value, str))
    return {SecretKey(name, key): value for (name, _, key), value in pairs}
