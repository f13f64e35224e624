"""The real dataplane: iptables, IP sets and routes of one network namespace."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from types import TracebackType

from felix_py.dataplane.backend import ToolError
from felix_py.dataplane.ipsets import IPSets
from felix_py.dataplane.iptables import Iptables
from felix_py.dataplane.links import LinkError, Links
from felix_py.dataplane.order import ORDER, Step
from felix_py.dataplane.routes import Routes
from felix_py.plan.layout import INTERFACE_PREFIX
from felix_py.records import Backend, Failure, Report, Update
from policy.model import Family

_OUR_INTERFACE = re.compile(re.escape(INTERFACE_PREFIX) + r"[0-9a-f]{10}")


class Kernel:
    """Implements :class:`felix_py.dataplane.interface.Dataplane`. Usable as a context manager.

    Belongs to the network namespace of the thread that makes it, and all calls must come from that namespace.
    """

    def __init__(self, families: Collection[Family], backend: Backend) -> None:
        """
        Raises:
            ToolError: the backend's commands are not installed.
            OSError: no netlink: not root, or a kernel without it.
        """
        self._families = tuple(families)
        self._refused: dict[Family, Failure] = {}
        self._tables = {family: Iptables(family, backend) for family in self._families}
        self._sets = IPSets()
        try:
            self._routes = Routes(self._families)
        except BaseException:
            self._sets.close()
            raise

    def __enter__(self) -> Kernel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets. Everything in the kernel stays."""
        self._sets.close()
        self._routes.close()

    def load(self) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError: iptables cannot be read.
            OSError: netlink cannot be read.
        """
        self._sets.load()
        for tables in self._tables.values():
            tables.load()
        self._routes.load()

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

    def _of(self, family: Family) -> Iptables | None:
        if family not in self._tables:
            self._refused[family] = Failure(
                f"IPv{int(family)} rules", "the family is not programmed on this node"
            )
        return self._tables.get(family)

    def apply(self, *, sweep: bool = False) -> Report:
        """See :class:`felix_py.dataplane.interface.Dataplane`; :mod:`felix_py.dataplane.order` has the order.

        A step that breaks off (netlink does not answer, say) is a failure named ``apply`` and ends it.
        """
        report = Report(failures=tuple(self._refused.values()))
        for step in ORDER:
            try:
                report += self._step(step, sweep)
            except (OSError, ToolError) as error:
                return report + Report(failures=(Failure("apply", f"{step.name}: {error}"),))
        return report

    def _step(self, step: Step, sweep: bool) -> Report:
        match step:
            case Step.REMOVE_ROUTES:
                return self._routes.remove(sweep=sweep)
            case Step.GROW_SETS:
                return self._sets.grow()
            case Step.WRITE_CHAINS:
                return sum((tables.apply(sweep=sweep) for tables in self._tables.values()), Report())
            case Step.WRITE_MARKS:
                return self._sets.mark()
            case Step.WRITE_ROUTES:
                return self._routes.write()
            case Step.SHRINK_SETS:
                return self._sets.shrink(sweep=sweep)
            case Step.DESTROY_SETS:
                return self._sets.destroy(sweep=sweep)

    def differences(self) -> list[str]:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError, OSError: the kernel cannot be read.
        """
        self.load()
        chains = [what for tables in self._tables.values() for what in tables.differences()]
        return [*self._routes.differences(), *self._sets.differences(), *chains]

    def rules(self, family: Family, table: str, prefix: str) -> list[str]:
        """The rules (``-A CHAIN …``) of our chains with this prefix, as ``load`` found or ``apply`` left them."""
        return self._tables[family].rules(table, prefix) if family in self._tables else []

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
        return Report(failures=(Failure("interfaces", str(error)),))
    return Report(writes=len(names))
