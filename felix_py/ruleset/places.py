"""Which rules of others in a built-in chain are in the way of ours. No I/O.

Ours must be first, so that nothing lets a packet past what policy says, and those that accept last, so that
others have their say. A rule that can do neither may stand where its owner has put it: to move ours past it would
be a fight over nothing. In the nat table ours only masquerade, and each rule there has packets of its own.
"""

from __future__ import annotations

_LOOK_ON = frozenset({"", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT"})
"""Targets that do not change what becomes of a packet; empty: the rule only counts."""

_NEVER_LET_PASS = _LOOK_ON | {"DROP", "REJECT"}
_NEVER_DROP = _LOOK_ON | {"ACCEPT"}


def hinders_above(table: str, target: str) -> bool:
    """Whether a rule of others with this target (or chain) may not stand above ours."""
    return table != "nat" and target not in _NEVER_LET_PASS


def hinders_behind(table: str, target: str) -> bool:
    """Whether a rule of others with this target (or chain) may not stand behind ours that accept."""
    return table != "nat" and target not in _NEVER_DROP
