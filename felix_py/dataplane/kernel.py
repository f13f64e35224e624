"""The real dataplane: iptables, IP sets and routes of one network namespace."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import TracebackType

from felix_py.dataplane.backend import OwnProcesses, ToolError
from felix_py.dataplane.host_ends import HostEnds
from felix_py.dataplane.interface import EVERYTHING, Part
from felix_py.dataplane.ipsets import IPSets
from felix_py.dataplane.iptables import Iptables
from felix_py.dataplane.iptables_text import SavedTable
from felix_py.dataplane.links import LinkError, Links
from felix_py.dataplane.order import ORDER, Step
from felix_py.dataplane.routes import Routes
from felix_py.dataplane.sysctl import HostSettings
from felix_py.plan.layout import INTERFACE_PREFIX, ROUTE_PROTOCOL_LEARNED
from felix_py.records import Backend, Drift, Failure, Report, Update
from felix_py.refs import ApplyRef, LinksRef, Ref, RulesRef
from policy.model import Family

_OUR_INTERFACE = re.compile(re.escape(INTERFACE_PREFIX) + r"[0-9a-f]{10}")


_AHEAD_SECONDS = 10.0
"""For reading the rules while nobody waits for it."""

_AGAIN_SECONDS = 2.0
"""For reading them again because we wrote some meanwhile: new pods wait for that."""


@dataclass(frozen=True, slots=True)
class _RulesRead:
    """All rules of all families, and the epochs at which they were read."""

    epochs: Mapping[Family, int]
    tables: Mapping[Family, Mapping[str, SavedTable]]


class Kernel:
    """Implements :class:`felix_py.dataplane.interface.Dataplane`. Usable as a context manager.

    Belongs to the network namespace of the thread that makes it, and all calls must come from that namespace.
    """

    def __init__(self, families: Collection[Family], backend: Backend, closed: Collection[Family] = ()) -> None:
        """``closed``: families of which there is no more than rules that drop; the host need not forward them.

        Raises:
            ToolError: the backend's commands are not installed.
            OSError: no netlink: not root, or a kernel without it.
        """
        self._families = (*families, *closed)
        self._refused: dict[Family, Failure] = {}
        self.backend = backend
        self.own_processes = OwnProcesses()
        """Those that write rules for us: what the kernel tells of them is no news."""
        self._tables = {family: Iptables(family, backend, self.own_processes) for family in self._families}
        self._settings = HostSettings(families)
        with ExitStack() as stack:
            self._sets = stack.enter_context(closing(IPSets()))
            self._routes = stack.enter_context(closing(Routes(self._families)))
            self._ends = stack.enter_context(closing(HostEnds()))
            self._stack = stack.pop_all()

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets. Everything in the kernel stays."""
        self._stack.close()

    @property
    def routes(self) -> Routes:
        """For whoever has to tell our routes from others' in what the kernel reports."""
        return self._routes

    @property
    def gone_interfaces(self) -> frozenset[str]:
        """Host ends of pods that are not there any more, as the last look found. Any thread may ask."""
        return self._ends.gone

    def load(self, parts: Part = EVERYTHING, rules: object = None) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError: iptables cannot be read.
            OSError: netlink cannot be read.
        """
        if Part.SETS in parts:
            self._sets.load()
        if Part.ROUTES in parts:
            self._routes.load()
        if Part.LINKS in parts or Part.SETTINGS in parts:
            # What an interface must be like depends on the host's settings.
            self._settings.load()
        if Part.LINKS in parts:
            self._ends.load(self._settings.forwarding)
        if Part.RULES in parts:
            self._load_rules(rules)  # last, because this may well fail where others keep writing

    def _load_rules(self, read: object) -> None:
        if isinstance(read, _RulesRead) and read.epochs != self._epochs():
            read = self._read_rules(_AGAIN_SECONDS)
        known = read.tables if isinstance(read, _RulesRead) else {}
        for family, tables in self._tables.items():
            tables.load(known.get(family))

    def read_rules(self) -> object:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError: iptables cannot be read.
        """
        return self._read_rules(_AHEAD_SECONDS)

    def _read_rules(self, timeout: float) -> _RulesRead:
        epochs = self._epochs()
        return _RulesRead(epochs, {family: tables.read(timeout) for family, tables in self._tables.items()})

    def _epochs(self) -> dict[Family, int]:
        return {family: tables.epoch for family, tables in self._tables.items()}

    def hold(self, base: Update) -> list[Ref]:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        self._sets.hold()
        for key, route in self._routes.hold().items():
            self._ends.route(key, route)
        for family, tables in self._tables.items():
            chains = {
                key: rules for key, rules in base.chains.items() if key.family is family and rules is not None
            }
            hooks = [hook for hook, wanted in base.hooks.items() if hook.family is family and wanted]
            sets = {name: spec for name, spec in base.sets.items() if spec and spec.family is family}
            if tables.hold(chains, hooks, complete=self._sets.any_of(sets)):
                for name, spec in sets.items():
                    self._sets.spec(name, spec)
        return [*self._sets.differences(), *(ref for t in self._tables.values() for ref in t.differences())]

    def release(self) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        self._sets.release()
        self._routes.release()
        self._ends.release()
        for tables in self._tables.values():
            tables.release()

    def update(self, update: Update) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        for name in update.emptied:
            self._sets.spec(name, None)
        for name, spec in update.sets.items():
            self._sets.spec(name, spec)
        for name, members in update.members.items():
            for text, mark in members.items():
                self._sets.member(name, text, mark)
        for key, rules in update.chains.items():
            if tables := self._of(key.family):
                tables.chain(key, rules)
        for hook, wanted in update.hooks.items():
            if tables := self._of(hook.family):
                tables.hook(hook, wanted)
        for route_key, route in update.routes.items():
            self._routes.route(route_key, route)
            self._ends.route(route_key, route)

    def _of(self, family: Family) -> Iptables | None:
        if family not in self._tables:
            self._refused[family] = Failure(RulesRef(family), "the family is not programmed on this node")
        return self._tables.get(family)

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        """See :class:`felix_py.dataplane.interface.Dataplane`; :mod:`felix_py.dataplane.order` has the order.

        A step that breaks off (netlink does not answer, say) is a failure of the apply and ends it.
        """
        report = Report(failures=tuple(self._refused.values()))
        for step in ORDER:
            try:
                report += self._step(step, sweep, keep_learned)
            except (OSError, ToolError) as error:
                return report + Report(failures=(Failure(ApplyRef(), f"{step.name}: {error}"),))
        return report

    def _step(self, step: Step, sweep: bool, keep_learned: bool) -> Report:
        match step:
            case Step.REMOVE_ROUTES:
                kept = (ROUTE_PROTOCOL_LEARNED,) if keep_learned else ()
                return self._routes.remove(sweep=sweep, keep=kept)
            case Step.GROW_SETS:
                return self._sets.grow()
            case Step.WRITE_CHAINS:
                return sum((tables.apply(sweep=sweep) for tables in self._tables.values()), Report())
            case Step.WRITE_MARKS:
                return self._sets.mark()
            case Step.MEND_LINKS:
                return self._settings.apply() + self._ends.apply()
            case Step.WRITE_ROUTES:
                return self._routes.write(self._ends.gone)
            case Step.SHRINK_SETS:
                return self._sets.shrink(sweep=sweep)
            case Step.DESTROY_SETS:
                return self._sets.destroy(sweep=sweep)

    def take_drift(self) -> list[Drift]:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        rules = [drift for tables in self._tables.values() for drift in tables.take_drift()]
        others = (self._sets, self._routes, self._ends, self._settings)
        return [*rules, *(drift for part in others for drift in part.take_drift())]

    def differences(self) -> list[Ref]:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError, OSError: the kernel cannot be read.
        """
        self.load()
        chains = [ref for tables in self._tables.values() for ref in tables.differences()]
        return [*self._routes.differences(), *self._sets.differences(), *chains]

    def rules(self, family: Family, table: str, prefix: str) -> list[str]:
        """The rules (``-A CHAIN …``) of our chains with this prefix, as ``load`` found or ``apply`` left them."""
        return self._tables[family].rules(table, prefix) if family in self._tables else []

    def marks(self, set_name: str) -> set[int]:
        """The marks that a set's members carry, as ``load`` found or ``apply`` left them."""
        return self._sets.marks(set_name)

    def owned(self) -> list[str]:
        """A line for everything of ours in the kernel, interfaces too, as the last ``load`` found it."""
        lines = [line for tables in self._tables.values() for line in tables.owned()]
        return [
            *(f"interface {name}" for name in _our_interfaces()),
            *self._routes.owned(),
            *lines,
            *self._sets.owned(),
        ]

    def remove_all(self) -> Report:
        """Remove everything of ours that :meth:`update` has not asked for: on a new Kernel, all of it.

        Interfaces go first: no packet of a pod passes while its rules go. A set that rules of the *other* backend
        use (the host has changed it) is left, and is a failure.

        Raises:
            ToolError, OSError: the kernel cannot be read.
        """
        self.load()
        return _delete_interfaces() + self.apply(sweep=True)


def _our_interfaces() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex() if _OUR_INTERFACE.fullmatch(name))


def _delete_interfaces() -> Report:
    names = _our_interfaces()
    if not names:
        return Report()
    try:
        with Links() as links:
            links.delete(names)
    except (LinkError, OSError) as error:
        return Report(failures=(Failure(LinksRef(), str(error)),))
    return Report(writes=len(names))
