"""What people are told of pools and blocks: notices, and Events on the objects."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from bgp.resources import Problem
from felix_py.agent.declared_pools import DeclaredPools
from felix_py.ipam.blocks import Demand
from felix_py.ipam.loans import Unmet
from felix_py.notices import NoticeKind, Notices

_COPY, _FULL, _OBJECT, _UNSEEN = "copy", "full:", "object:", "blocks"


def used_up(pools: Iterable[str], asked: Sequence[Unmet] | None) -> str:
    """Why a pod gets no address of pools in which every block is claimed, and what to do.

    ``asked``: whom this node has asked for a loan in vain; None: nodes lend each other none.
    """
    claimed = f"every block of IPPool {', '.join(pools)} is claimed"
    if asked is None:
        return f"{claimed}, and nodes lend no addresses (strictAffinity): make another IPPool, or delete pods"
    answers = [
        f"{one.block.node} {'refused' if one.refused else 'does not answer'}, asked {one.ago:.0f} seconds ago"
        for one in asked
    ]
    told = f"({'; '.join(answers)})" if answers else "(as far as is known, they have no free one)"
    return f"{claimed}, and no other node lends an address {told}: make another IPPool, or delete pods"


class PoolNotices:
    """On the event loop only."""

    def __init__(self, declared: DeclaredPools, notices: Notices, warn: Callable[[Problem, str], None]) -> None:
        """``warn`` writes an Event on the object of this uid."""
        self._declared = declared
        self._notices = notices
        self._warn = warn
        self._warned: frozenset[Problem] = frozenset()
        self._failed: set[str] = set()

    def declared(self) -> None:
        """Tell what is wrong with the objects."""
        problems = self._declared.problems
        told: dict[str, str] = {}
        for one in sorted(problems):
            told[f"{_OBJECT} {one.kind} {one.name}"] = f"{one.kind} {one.name}: {one.field}: {one.reason}"
        self._replace(_OBJECT, told)
        for problem in sorted(problems - self._warned):
            self._warn(problem, self._declared.uid(problem.name, problem.kind))
        self._warned = problems

    def unseen(self, refused: bool) -> None:
        """Tell that blocks may not be seen although there are pools; not ``refused``: they may."""
        text = (
            "IPAMBlocks or BlockAffinities cannot be listed, so no pod that needs an address starts: there are "
            "IPPools. See the log, and whether the ClusterRole felix-py is of this version"
        )
        self._say(_UNSEEN, text if refused else "")

    def exhausted(self, demands: Sequence[Demand], hopeless: Sequence[Demand] | None) -> None:
        """Tell which pools have no block left. ``hopeless``: those of which nothing can be borrowed, either;
        None: no address may be."""
        told = {}
        for demand in demands:
            names = ", ".join(demand.pools)
            text = f"no block is left in {names}: "
            if hopeless is not None and demand not in hopeless:
                text += "pods that need a further one get addresses that other nodes lend"
            elif hopeless is not None:
                text += "no other node lends an address, and pods that need one wait"
            else:
                text += "pods that need a further one wait"
            told[f"{_FULL} {names}"] = f"{text}. Make another IPPool, or delete pods"
        self._replace(_FULL, told)

    def failed(self, cidr: str, reason: str) -> None:
        """Tell that a block cannot be claimed, lent of or given back; no reason: it can."""
        (self._failed.add if reason else self._failed.discard)(cidr)
        self._say(cidr, f"block {cidr} cannot be claimed, lent of or given back: {reason}" if reason else "")

    def undone(self, cidrs: Collection[str]) -> None:
        """Something is to be done about these blocks, so that of others there is nothing to tell any more."""
        for cidr in self._failed.difference(cidrs):
            self.failed(cidr, "")

    def unwritten(self, path: str, reason: str) -> None:
        """Tell that blocks cannot be noted on disk; no reason: they can."""
        text = (
            f"blocks cannot be noted in {path}: {reason}. None is given back until they can. Make room on the "
            "disk, or mend it"
        )
        self._say(_COPY, text if reason else "")

    def _say(self, subject: str, text: str) -> None:
        self._notices.tell(NoticeKind.IP_POOLS, subject, text)

    def _replace(self, prefix: str, told: Mapping[str, str]) -> None:
        for subject in list(self._notices.of(NoticeKind.IP_POOLS)):
            if subject.startswith(prefix) and subject not in told:
                self._notices.clear(NoticeKind.IP_POOLS, subject)
        for subject, text in told.items():
            self._notices.say(NoticeKind.IP_POOLS, subject, text)
