"""The real dataplane: the parts of one network namespace's kernel that are ours."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack, closing
from types import TracebackType

from felix_py.dataplane.backend import OwnProcesses, ToolError
from felix_py.dataplane.host_ends import HostEnds, pod_interfaces
from felix_py.dataplane.interface import EVERYTHING, Look, RulesSnapshot
from felix_py.dataplane.ipsets import IPSets
from felix_py.dataplane.links import LinkError, Links
from felix_py.dataplane.order import ORDER
from felix_py.dataplane.part import Part, Sweep
from felix_py.dataplane.routes import Routes
from felix_py.dataplane.rules import Rules
from felix_py.dataplane.sysctl import HostSettings
from felix_py.records import Backend, Drift, Failure, Report, Update
from felix_py.refs import ApplyRef, LinksRef, Ref
from policy.model import Family


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
        every = (*families, *closed)
        self.backend = backend
        self.own_processes = OwnProcesses()
        """Those that write rules for us: what the kernel tells of them is no news."""
        settings = HostSettings(families)
        with ExitStack() as stack:
            self._sets = stack.enter_context(closing(IPSets()))
            self._ends = stack.enter_context(closing(HostEnds(settings)))
            self.routes = stack.enter_context(closing(Routes(every, self._ends.is_gone)))
            """For whoever has to tell our routes from others' in what the kernel reports."""
            self._rules = Rules(every, backend, self.own_processes, self._sets.has)
            self._stack = stack.pop_all()
        # In the order in which they are loaded. What an interface must be like depends on the host's settings.
        # The rules are last, because reading them may well fail where others keep writing.
        self._parts: tuple[Part, ...] = (self._sets, self.routes, settings, self._ends, self._rules)

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
    def gone_interfaces(self) -> frozenset[str]:
        """Host ends of pods that are not there any more, as the last look found. Any thread may ask."""
        return self._ends.gone

    def load(self, look: Look = EVERYTHING, rules: RulesSnapshot | None = None) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError: iptables cannot be read.
            OSError: netlink cannot be read.
        """
        self._rules.offer(rules)
        for part in self._parts:
            if part.looks & look:
                part.load()

    def read_rules(self) -> RulesSnapshot:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError: iptables cannot be read.
        """
        return self._rules.read()

    def hold(self, base: Update) -> list[Ref]:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        for part in self._parts:
            self.update(part.hold(base))
        return self._missing()

    def release(self) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        for part in self._parts:
            part.release()

    def update(self, update: Update) -> None:
        """See :class:`felix_py.dataplane.interface.Dataplane`."""
        for part in self._parts:
            part.update(update)

    def apply(self, *, sweep: bool = False, keep_learned: bool = False) -> Report:
        """See :class:`felix_py.dataplane.interface.Dataplane`; :mod:`felix_py.dataplane.order` has the order.

        A step that breaks off (netlink does not answer, say) is a failure of the apply and ends it.
        """
        swept = Sweep.NOTHING if not sweep else Sweep.ALL_BUT_LEARNED if keep_learned else Sweep.ALL
        report = Report()
        for step in ORDER:
            try:
                for part in self._parts:
                    if step in part.steps:
                        report += part.steps[step](swept)
            except (OSError, ToolError) as error:
                return report + Report(failures=(Failure(ApplyRef(), f"{step.name}: {error}"),))
        return report

    def take_drift(self) -> list[Drift]:
        """See :class:`felix_py.dataplane.interface.Dataplane`. That of rules, the gravest, comes first."""
        return [drift for part in reversed(self._parts) for drift in part.take_drift()]

    def differences(self) -> list[Ref]:
        """See :class:`felix_py.dataplane.interface.Dataplane`.

        Raises:
            ToolError, OSError: the kernel cannot be read.
        """
        self.load()
        return self._missing()

    def _missing(self) -> list[Ref]:
        return [ref for part in self._parts for ref in part.differences()]

    def rules(self, family: Family, table: str, prefix: str) -> list[str]:
        """The rules (``-A CHAIN …``) of our chains with this prefix, as ``load`` found or ``apply`` left them."""
        return self._rules.rules(family, table, prefix)

    def marks(self, set_name: str) -> set[int]:
        """The marks that a set's members carry, as ``load`` found or ``apply`` left them."""
        return self._sets.marks(set_name)

    def owned(self) -> list[str]:
        """A line for everything of ours in the kernel, interfaces too, as the last ``load`` found it."""
        return [line for part in self._parts for line in part.owned()]

    def remove_all(self) -> Report:
        """Remove everything of ours that :meth:`update` has not asked for: on a new Kernel, all of it.

        Interfaces go first: no packet of a pod passes while its rules go. A set that rules of the *other* backend
        use (the host has changed it) is left, and is a failure.

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
