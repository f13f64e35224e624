"""Events on policies of which the kernel refuses a part, so that it is not enforced on this node."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from felix_py.desired.names import parse_name
from felix_py.records import Failure
from felix_py.refs import chain_or_set
from policy.ir import ChainId, SetId
from policy.model import PolicyRef

REASON = "NotEnforced"
"""Reason of the Events."""


class Refusals:
    """Takes the failures of every apply, and warns once for each chain or set that a policy lacks."""

    def __init__(
        self,
        policies_using: Callable[[ChainId | SetId], tuple[PolicyRef, ...]],
        warn: Callable[[PolicyRef, str, str], None],
    ) -> None:
        """``policies_using``: the policies of a chain or set. ``warn``: policy, reason, text of an Event."""
        self._policies_using = policies_using
        self._warn = warn
        self._told: set[tuple[PolicyRef, str]] = set()

    def __call__(self, failures: Iterable[Failure]) -> None:
        """Take all failures of the last apply; one that is over is warned of again when it recurs."""
        first: dict[str, Failure] = {}
        for failure in failures:
            if name := chain_or_set(failure.ref):
                first.setdefault(name, failure)
        now: set[tuple[PolicyRef, str]] = set()
        for name, failure in first.items():
            compiled = parse_name(name)
            for policy in self._policies_using(compiled) if compiled else ():
                now.add((policy, name))
                if (policy, name) not in self._told:
                    text = f"the kernel refuses a part of it, which is tried again: {failure}"
                    self._warn(policy, REASON, text)
        self._told = now
