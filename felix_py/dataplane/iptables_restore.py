"""Transactions of iptables-restore: their text, running them, and finding what makes one fail."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from felix_py.dataplane.backend import OwnProcesses, ToolError, command, run
from felix_py.dataplane.iptables_text import TABLES, Rule
from felix_py.records import Backend
from felix_py.refs import ChainRef, HookRef, chain_or_set
from policy.model import Family

Place = tuple[str, str]
"""(table, chain)"""

_LOCK_SECONDS = 10
"""How long the legacy tools may wait for another program's xtables lock before they give up."""

_HOPELESS = ("xtables lock", "initialize", "Permission denied", "Operation not permitted", "is incompatible")
"""Parts of errors that have nothing to do with any one chain."""


@dataclass(frozen=True, slots=True)
class Change:
    """What brings one chain to its wanted content: lines of an iptables-restore transaction.

    ``before`` and ``after`` are the chain's content; ``after`` None: the chain is gone by then.
    """

    ref: ChainRef | HookRef
    lines: tuple[str, ...]
    before: tuple[Rule, ...]
    after: tuple[Rule, ...] | None

    @property
    def place(self) -> Place:
        """Its table and chain."""
        return self.ref.table, chain_or_set(self.ref)

    @property
    def is_ours(self) -> bool:
        """Our own chain, rather than hooks in a built-in one."""
        return isinstance(self.ref, ChainRef)


def transaction(changes: Iterable[Change]) -> str:
    """The input of iptables-restore for some changes.

    All chains of a table are declared first (which makes or empties them), so that rules may name chains that
    come later; chains are deleted last, when nothing refers to them any more.
    """
    text: list[str] = []
    for table, members in by_table(changes):
        text.append(f"*{table}")
        text += [f":{change.place[1]} - [0:0]" for change in members if change.is_ours]
        for change in members:
            text += change.lines
        text += [f"-X {change.place[1]}" for change in members if change.after is None]
        text.append("COMMIT")
    return "\n".join([*text, ""])


def by_table(changes: Iterable[Change]) -> Iterator[tuple[str, list[Change]]]:
    """The changes of each table; those of built-in chains behind those of our own."""

    def order(change: Change) -> tuple[int, bool, str]:
        return TABLES.index(change.place[0]), not change.is_ours, change.place[1]

    for table, members in itertools.groupby(sorted(changes, key=order), key=lambda change: change.place[0]):
        yield table, list(members)


def in_dependency_order(changes: Sequence[Change]) -> list[Change]:
    """One table's changes so that each prefix of the list can stand alone.

    A chain comes behind the chains its rules jump to; one that is deleted comes behind those that jumped to it.
    """
    by_chain = {change.place[1]: change for change in changes}
    needs: dict[str, set[str]] = {chain: _targets(change.after or ()) for chain, change in by_chain.items()}
    for chain, change in by_chain.items():
        for target in _targets(change.before) & by_chain.keys():
            if by_chain[target].after is None:
                needs[target].add(chain)
    order: dict[str, Change] = {}
    seen: set[str] = set()

    def visit(chain: str) -> None:
        if chain in by_chain and chain not in seen:  # seen and not in order: a loop, which the kernel will refuse
            seen.add(chain)
            for needed in sorted(needs[chain]):
                visit(needed)
            order[chain] = by_chain[chain]

    for chain in by_chain:
        visit(chain)
    return list(order.values())


def _targets(rules: Iterable[Rule]) -> set[str]:
    """Chains (and targets) that rules jump or go to."""
    return {rule.leads_to for rule in rules}


def is_hopeless(error: str) -> bool:
    """Whether trying the chains one by one could not help: the lock is held, the table is not there, …"""
    return any(part in error for part in _HOPELESS)


class Restore:
    """Runs transactions of one family and counts them. ``epoch`` is odd while one is under way."""

    def __init__(self, family: Family, backend: Backend, own: OwnProcesses | None = None) -> None:
        """``own`` gets to know every process that is started.

        Raises:
            ToolError: the backend's commands are not installed.
        """
        self._argv = [command(family, backend, "restore"), "--noflush", "-w", str(_LOCK_SECONDS)]
        self._own = own
        self.runs = 0
        self.epoch = 0

    def run(self, changes: Sequence[Change]) -> str | None:
        """One transaction; the tool's complaint if it failed, and then some tables may be written."""
        if not changes:
            return None
        self.runs += 1
        self.epoch += 1
        try:
            run(self._argv, transaction(changes), self._own)
        except ToolError as error:
            return str(error)
        finally:
            self.epoch += 1
        return None

    def isolate(self, changes: Sequence[Change]) -> Iterator[tuple[Sequence[Change], str | None]]:
        """Write as much of one table's changes as possible: pairs of (changes, None or why they failed).

        Halves what fails, in dependency order, down to the single chains that cannot be written (and those that
        need them): about 2 log2(n) runs for one bad chain among n.
        """
        error = self.run(changes)
        if error is None or len(changes) == 1 or is_hopeless(error):
            yield changes, error
            return
        middle = len(changes) // 2
        yield from self.isolate(changes[:middle])
        yield from self.isolate(changes[middle:])
