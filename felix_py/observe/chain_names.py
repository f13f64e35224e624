"""Which policies stand behind a chain: also of a chain that is gone, for whoever hears of it too late."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from policy.ir import Delta
from policy.model import Direction, PolicyRef
from policy.names import policy_chain

_CLASS = ("FELIX-CE-", "FELIX-CI-")
_GONE_KEPT = 1000
"""Names of chains that are gone, the oldest forgotten first."""


class ChainNames:
    """Class chains and policy chains by name. Fed with every change of compiled policy, as it is planned."""

    def __init__(self, policies_using: Callable[[str], tuple[PolicyRef, ...]]) -> None:
        """``policies_using``: the policies of a class chain that exists."""
        self._policies_using = policies_using
        self._live: dict[str, tuple[PolicyRef, ...]] = {}
        self._existing: set[str] = set()
        self._gone: OrderedDict[str, tuple[PolicyRef, ...]] = OrderedDict()

    def note(self, delta: Delta) -> None:
        """Chains come and go."""
        for name, chain in delta.chains.items():
            if chain is not None:
                self._existing.add(name)
                continue
            self._existing.discard(name)
            if (policies := self._live.pop(name, None)) is not None:
                self._gone[name] = policies
        for name, chain in delta.chains.items():
            if chain is not None and name.startswith(_CLASS):
                self._live[name] = self._policies_using(name)
                # Packets come to a policy's chain by a class only, so that no name need be searched for.
                for ref in self._live[name]:
                    self._live |= {n: (ref,) for d in Direction if (n := policy_chain(d, ref)) in self._existing}
        while len(self._gone) > _GONE_KEPT:
            self._gone.popitem(last=False)

    def policies(self, name: str) -> tuple[PolicyRef, ...] | None:
        """The policies behind a chain, in order of evaluation; None: never heard of it, or too long ago.

        () is the class of pods of which too little is known to say what selects them.
        """
        found = self._live.get(name)
        return found if found is not None else self._gone.get(name)

    def __len__(self) -> int:
        """How many chains exist."""
        return len(self._existing)
