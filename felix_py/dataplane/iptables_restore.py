"""Transactions of iptables-restore: their text, running them, and isolating the change that fails."""

from __future__ import annotations

import fcntl
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from msgspec import Struct

from felix_py.dataplane.backend import OwnProcesses, ToolError, command, run
from felix_py.dataplane.iptables_text import TABLES, Rule
from felix_py.dataplane.lock_watch import LOCK as XTABLES_LOCK
from felix_py.records import Backend
from felix_py.refs import ChainRef, HookRef, chain_or_set
from policy.model import Family

Place = tuple[str, str]
"""(table, chain)"""

_LOCK_SECONDS = 10
"""Seconds that the legacy tools wait for the xtables lock."""

_HOPELESS = ("xtables lock", "initialize", "Permission denied", "Operation not permitted", "is incompatible")
"""Parts of errors that no single chain causes."""


class Change(Struct, frozen=True):
    """The lines of an iptables-restore transaction that bring one chain to its wanted content.

    ``before`` and ``after`` are the chain's content; ``after`` None: the chain is deleted.
    """

    ref: ChainRef | HookRef
    lines: tuple[str, ...]
    before: tuple[Rule, ...]
    after: tuple[Rule, ...] | None

    @property
    def place(self) -> Place:
        return self.ref.table, chain_or_set(self.ref)

    @property
    def is_ours(self) -> bool:
        """Whether the chain is ours, not a built-in one with hooks."""
        return isinstance(self.ref, ChainRef)


def transaction(changes: Iterable[Change]) -> str:
    """The input of iptables-restore for changes.

    All chains of a table are declared first, which creates or flushes them, so that rules may name later chains;
    chains are deleted last, when no rule refers to them any more.
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
    """The changes of each table; those of built-in chains after those of our own chains."""

    def order(change: Change) -> tuple[int, bool, str]:
        return TABLES.index(change.place[0]), not change.is_ours, change.place[1]

    for table, members in itertools.groupby(sorted(changes, key=order), key=lambda change: change.place[0]):
        yield table, list(members)


def in_dependency_order(changes: Sequence[Change]) -> list[Change]:
    """One table's changes in an order of which each prefix is valid by itself.

    A chain follows the chains that its rules jump to; a deleted chain follows the chains that jumped to it.
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
        if chain in by_chain and chain not in seen:  # seen, not in order: a loop, which the kernel refuses
            seen.add(chain)
            for needed in sorted(needs[chain]):
                visit(needed)
            order[chain] = by_chain[chain]

    for chain in by_chain:
        visit(chain)
    return list(order.values())


def _targets(rules: Iterable[Rule]) -> set[str]:
    return {rule.leads_to for rule in rules}


def is_hopeless(error: str) -> bool:
    """Whether trying the chains one by one would not help: the lock is held, the table does not exist, …"""
    return any(part in error for part in _HOPELESS)


def lock_is_held(path: Path = XTABLES_LOCK) -> bool:
    """Whether another process holds the xtables lock at this moment; False if there is no such file.

    The lock is taken for a microsecond: ``/proc/locks`` hides the holders outside of a container.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


class Restore:
    """Runs transactions of one family and counts them. ``epoch`` is odd while one is under way."""

    def __init__(self, family: Family, backend: Backend, own: OwnProcesses | None = None) -> None:
        """``own`` gets the pid of every process that is started.

        Raises:
            ToolError: the backend's commands are not installed.
        """
        self._argv = [command(family, backend, "restore"), "--noflush", "-w", str(_LOCK_SECONDS)]
        self._own = own
        self._locks = backend is Backend.LEGACY
        self.runs = 0
        self.epoch = 0
        self._waits = 0
        self._waited = 0.0

    @property
    def counted(self) -> tuple[int, int, float]:
        """Transactions; of these, those that found the xtables lock held; and the seconds that these took."""
        return self.runs, self._waits, self._waited

    def run(self, changes: Sequence[Change]) -> str | None:
        """Run one transaction; returns None, or the tool's error text, and then some tables may be written."""
        if not changes:
            return None
        self.runs += 1
        self.epoch += 1
        waits, started = self._locks and lock_is_held(), time.monotonic()
        try:
            run(self._argv, transaction(changes), self._own)
        except ToolError as error:
            return str(error)
        finally:
            self.epoch += 1
            if waits:
                self._waits += 1
                self._waited += time.monotonic() - started
        return None

    def isolate(self, changes: Sequence[Change]) -> Iterator[tuple[Sequence[Change], str | None]]:
        """Write as many of one table's changes as possible; yields pairs of (changes, None or their error).

        Bisects failed changes, in dependency order, down to single chains that cannot be written (and those that
        need them): about 2 log2(n) runs for one bad chain among n.
        """
        error = self.run(changes)
        if error is None or len(changes) == 1 or is_hopeless(error):
            yield changes, error
            return
        middle = len(changes) // 2
        yield from self.isolate(changes[:middle])
        yield from self.isolate(changes[middle:])
