"""The iptables rules of all families, as one part of the kernel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from felix_py.dataplane.backend import OwnProcesses
from felix_py.dataplane.interface import Look, RulesSnapshot
from felix_py.dataplane.iptables import Iptables
from felix_py.dataplane.iptables_text import SavedTable
from felix_py.dataplane.order import Step
from felix_py.dataplane.part import Part, Sweep
from felix_py.records import Backend, Drift, Failure, Report, Update
from felix_py.refs import Ref, RulesRef
from policy.model import Family

_AHEAD_SECONDS = 10.0
"""For reading the rules while nobody waits for it."""

_AGAIN_SECONDS = 2.0
"""For reading them again because we wrote some meanwhile: new pods wait for that."""


@dataclass(frozen=True, slots=True)
class _Read(RulesSnapshot):
    """All rules of all families, and the epochs at which they were read."""

    epochs: Mapping[Family, int]
    tables: Mapping[Family, Mapping[str, SavedTable]]


class Rules(Part):
    """One transaction a family writes what differs. See :class:`felix_py.dataplane.iptables.Iptables`."""

    looks = Look.RULES

    def __init__(
        self,
        families: Collection[Family],
        backend: Backend,
        own: OwnProcesses,
        has_set: Callable[[str], bool],
    ) -> None:
        """``own`` gets to know every process that writes for us. ``has_set``: whether the kernel has an IP set.

        Raises:
            ToolError: the backend's commands are not installed.
        """
        self._tables = {family: Iptables(family, backend, own) for family in families}
        self._has_set = has_set
        self._refused: dict[Family, Failure] = {}
        self._read: _Read | None = None
        self.steps = {Step.WRITE_CHAINS: self.write}

    # --- looking -------------------------------------------------------------------------------------

    def read(self, timeout: float = _AHEAD_SECONDS) -> _Read:
        """Read all rules for :meth:`offer`, within so many seconds. Any thread may call this.

        Raises:
            ToolError: iptables cannot be read.
        """
        epochs = self._epochs()
        return _Read(epochs, {family: tables.read(timeout) for family, tables in self._tables.items()})

    def offer(self, rules: RulesSnapshot | None) -> None:
        """What the next :meth:`load` may use; if something was written since it was read, it reads again."""
        self._read = rules if isinstance(rules, _Read) else None

    def load(self) -> None:
        """See :class:`Part`.

        Raises:
            ToolError: iptables cannot be read.
        """
        read, self._read = self._read, None
        if read and read.epochs != self._epochs():
            read = self.read(_AGAIN_SECONDS)
        for family, tables in self._tables.items():
            tables.load(read.tables[family] if read else None)

    def _epochs(self) -> dict[Family, int]:
        return {family: tables.epoch for family, tables in self._tables.items()}

    def take_drift(self) -> list[Drift]:
        """See :class:`Part`."""
        return [drift for tables in self._tables.values() for drift in tables.take_drift()]

    def differences(self) -> Iterator[Ref]:
        """See :class:`Part`."""
        for tables in self._tables.values():
            yield from tables.differences()

    def owned(self) -> list[str]:
        """See :class:`Part`."""
        return [line for tables in self._tables.values() for line in tables.owned()]

    def rules(self, family: Family, table: str, prefix: str) -> list[str]:
        """The rules (``-A CHAIN …``) of our chains with this prefix, as ``load`` found or ``write`` left them."""
        return self._tables[family].rules(table, prefix) if family in self._tables else []

    # --- wanting and writing -------------------------------------------------------------------------

    def update(self, update: Update) -> None:
        """See :class:`Part`."""
        for key, rules in update.chains.items():
            if tables := self._of(key.family):
                tables.chain(key, rules)
        for hook, wanted in update.hooks.items():
            if tables := self._of(hook.family):
                tables.hook(hook, wanted)

    def _of(self, family: Family) -> Iptables | None:
        if family not in self._tables:
            self._refused[family] = Failure(RulesRef(family), "the family is not programmed on this node")
        return self._tables.get(family)

    def hold(self, base: Update) -> Update:
        """See :class:`Part`. The rules of the base need its sets."""
        needed = Update()
        for family, tables in self._tables.items():
            chains = {
                key: rules for key, rules in base.chains.items() if key.family is family and rules is not None
            }
            hooks = [hook for hook, wanted in base.hooks.items() if hook.family is family and wanted]
            sets = {name: spec for name, spec in base.sets.items() if spec and spec.family is family}
            if tables.hold(chains, hooks, complete=any(map(self._has_set, sets))):
                needed.sets |= sets
        return needed

    def release(self) -> None:
        """See :class:`Part`."""
        for tables in self._tables.values():
            tables.release()

    def write(self, sweep: Sweep) -> Report:
        """Write what differs."""
        refused = Report(failures=tuple(self._refused.values()))
        return sum((tables.apply(sweep=sweep > Sweep.NOTHING) for tables in self._tables.values()), refused)
