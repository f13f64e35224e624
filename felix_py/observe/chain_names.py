"""The policies of a chain, also of a deleted one, whose packets and counters may be read after its deletion."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from policy.ir import ChainId, ChainKind, Delta
from policy.model import Direction, PolicyRef
from policy.names import policy_chain

_GONE_KEPT = 1000
"""Deleted chains that are remembered; the oldest are forgotten first."""


class ChainNames:
    """Class chains and policy chains. Takes every change of compiled policy when it is planned."""

    def __init__(self, policies_using: Callable[[ChainId], tuple[PolicyRef, ...]]) -> None:
        """``policies_using``: the policies of an existing class chain."""
        self._policies_using = policies_using
        self._live: dict[ChainId, tuple[PolicyRef, ...]] = {}
        self._existing: set[ChainId] = set()
        self._gone: OrderedDict[ChainId, tuple[PolicyRef, ...]] = OrderedDict()

    def note(self, delta: Delta) -> None:
        """Take new, changed and deleted chains."""
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
                # Packets reach a policy's chain from class chains only, so these lead to all policies.
                for ref in self._live[chain]:
                    self._live |= {c: (ref,) for d in Direction if (c := policy_chain(d, ref)) in self._existing}
        while len(self._gone) > _GONE_KEPT:
            self._gone.popitem(last=False)

    def policies(self, chain: ChainId) -> tuple[PolicyRef, ...] | None:
        """The policies of a chain, in order of evaluation, or None if it is unknown or was forgotten.

        () is the class of pods whose object or namespace is not known.
        """
        found = self._live.get(chain)
        return found if found is not None else self._gone.get(chain)

    def __len__(self) -> int:
        """Number of existing chains."""
        return len(self._existing)
