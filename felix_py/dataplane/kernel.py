"""The real dataplane: our objects in the kernel of one network namespace."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

from felix_py.dataplane.backend import OwnProcesses, ToolError
from felix_py.dataplane.host_ends import HostEnds, pod_interfaces
from felix_py.dataplane.ipsets import IPSets
from felix_py.dataplane.iptables import Iptables, TablesRead
from felix_py.dataplane.links import LinkError, Links
from felix_py.dataplane.order import ORDER
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.protocols import EVERYTHING, Dataplane, Look, RulesSnapshot
from felix_py.dataplane.routes import Routes
from felix_py.dataplane.sysctl import HostSettings
from felix_py.netlink.connection import Closing
from felix_py.records import Backend, Drift, Failure, Report, Update
from felix_py.refs import ApplyRef, LinksRef, Ref, RulesRef
from felix_py.ruleset.model import Body
from policy.model import Family


@dataclass(frozen=True, slots=True)
class _RulesRead(RulesSnapshot):
    families: Mapping[Family, TablesRead]


class Kernel(Closing, Dataplane):
    """Belongs to the network namespace of the thread that makes it; all calls must come from that namespace."""

    def __init__(self, families: Collection[Family], backend: Backend, closed: Collection[Family] = ()) -> None:
        """``closed``: families for which there are only rules that drop; the host need not forward them.

        Raises:
            ToolError: the backend's commands are not installed.
            OSError: no netlink: not root, or a kernel without it.
        """
        self.backend = backend
        self.own_processes = OwnProcesses()
        """Processes that write rules for us, whose netlink events are ignored."""
        settings, every = HostSettings(families), (*families, *closed)
        with ExitStack() as stack:
            self._sets = stack.enter_context(closing(IPSets()))
            self._ends = stack.enter_context(closing(HostEnds(settings)))
            self.routes = stack.enter_context(closing(Routes(every, self._ends.is_gone)))
            """Also used to tell our routes from others' in netlink events."""
            self._tables = {f: Iptables(f, backend, self.own_processes, self._sets.has) for f in every}
            self._stack = stack.pop_all()
        self._refused: dict[Family, Failure] = {}
        # In the order of loading. Host ends depend on the host's settings. The rules are last, because reading
        # them may fail while other programs keep writing rules.
        self._parts: tuple[Part, ...] = (self._sets, self.routes, settings, self._ends, *self._tables.values())

    def close(self) -> None:
        """Close the sockets. Everything in the kernel stays."""
        self._stack.close()

    @property
    def gone_interfaces(self) -> frozenset[str]:
        """Host ends of pods that the last load did not find. Any thread may ask."""
        return self._ends.gone

    def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
        for family, tables in self._tables.items():
            tables.offer(rules.families[family] if isinstance(rules, _RulesRead) else None)
        for part in self._parts:
            if part.looks & look:
                part.load()

    def read_rules(self) -> RulesSnapshot:
        return _RulesRead({family: tables.read() for family, tables in self._tables.items()})

    def miscounted(self) -> Look:
        return functools.reduce(Look.__or__, (part.looks for part in self._parts if part.miscounted()), Look(0))

    def hold(self, base: Update) -> list[Ref]:
        for part in self._parts:
            self.update(part.hold(base))
        return self._missing()

    def release(self) -> None:
        for part in self._parts:
            part.release()

    def update(self, update: Update) -> None:
        families = {chain.family for chain in update.chains} | {hook.family for hook in update.hooks}
        for family in families - self._tables.keys():
            self._refused[family] = Failure(RulesRef(family), "the family is not programmed on this node")
        for part in self._parts:
            part.update(update)

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        """Write the difference in the steps of ``ORDER``. A step that raises is a failure and ends the apply."""
        swept = Sweep.NOTHING if not sweep else Sweep.ALL_BUT_LEARNED if keep_learned else Sweep.ALL
        report = Report(failures=tuple(self._refused.values()))
        for step in ORDER:
            try:
                for part in self._parts:
                    if step in part.steps:
                        report += part.steps[step](swept)
            except (OSError, ToolError) as error:
                return report + Report(failures=(Failure(ApplyRef(), f"{step.name}: {error}"),))
        return report

    def take_drift(self) -> list[Drift]:
        """Drift of all parts; that of rules, the most severe, comes first."""
        return [drift for part in reversed(self._parts) for drift in part.take_drift()]

    def sizes(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for part in self._parts:
            for kind, number in part.sizes().items():
                found[kind] = found.get(kind, 0) + number
        return found

    def differences(self) -> list[Ref]:
        self.load()
        return self._missing()

    def _missing(self) -> list[Ref]:
        return [ref for part in self._parts for ref in part.differences()]

    def rules(self, family: Family, table: str, prefix: str) -> list[Body]:
        """The rules of our chains with this prefix, as last loaded or applied."""
        return self._tables[family].rules(table, prefix) if family in self._tables else []

    def marks(self, set_name: str) -> set[int]:
        """The marks of a set's members, as last loaded or applied."""
        return self._sets.marks(set_name)

    def owned(self) -> list[str]:
        """A line for each object of ours in the kernel, interfaces too, as last loaded."""
        return [line for part in self._parts for line in part.owned()]

    def remove_all(self) -> Report:
        """Remove all our objects that no :meth:`update` wants: on a new Kernel, all of them.

        Interfaces are removed first, so that no packet of a pod passes while its rules are removed. A set that
        rules of the *other* backend use (after the host has changed its backend) is left, as a failure.

        Raises:
            ToolError, OSError: the kernel cannot be read.
        """
        self.load()
        return _delete_interfaces() + self.apply(sweep=True)


def _delete_interfaces() -> Report:
    names = pod_interfaces()
    if not names:
        return Report()
    try:
        with Links() as links:
            links.delete(names)
    except (LinkError, OSError) as error:
        return Report(failures=(Failure(LinksRef(), str(error)),))
    return Report(writes=len(names))
