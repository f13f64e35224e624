"""Which policies stand behind a chain: also of a chain that is gone, for whoever hears of it too late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from policy.ir import ChainId, ChainKind, Delta
from policy.model import Direction, PolicyRef
from policy.names import policy_chain

_GONE_KEPT = 1000
"""Chains that are gone, the oldest forgotten first."""


class ChainNames:
    """Class chains and policy chains. Fed with every change of compiled policy, as it is planned."""

    def __init__(self, policies_using: Callable[[ChainId], tuple[PolicyRef, ...]]) -> None:
        """``policies_using``: the policies of a class chain that exists."""
        self._policies_using = policies_using
        self._live: dict[ChainId, tuple[PolicyRef, ...]] = {}
        self._existing: set[ChainId] = set()
        self._gone: OrderedDict[ChainId, tuple[PolicyRef, ...]] = OrderedDict()

    def note(self, delta: Delta) -> None:
        """Chains come and go."""
        for chain, rules in delta.chains.items():
            if rules is not None:
                self._existing.add(chain)
                continue
            self._existing.discard(chain)
            if (policies := self._live.pop(chain, None)) is not None:
                self._gone[chain] = policies
        for chain, rules in delta.chains.items():
            if rules is not None and chain.kind is ChainKind.CLASS:
                self._live[chain] = self._policies_using(chain)
                # Packets come to a policy's chain by a class only, so that none need be searched for.
                for ref in self._live[chain]:
                    self._live |= {c: (ref,) for d in Direction if (c := policy_chain(d, ref)) in self._existing}
        while len(self._gone) > _GONE_KEPT:
            self._gone.popitem(last=False)

    def policies(self, chain: ChainId) -> tuple[PolicyRef, ...] | None:
        """The policies behind a chain, in order of evaluation; None: never heard of it, or too long ago.

        () is the class of pods of which too little is known to say what selects them.
        """
        found = self._live.get(chain)
        return found if found is not None else self._gone.get(chain)

    def __len__(self) -> int:
        """How many chains exist."""
        return len(self._existing)
