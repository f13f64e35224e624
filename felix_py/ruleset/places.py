"""Foreign rules in a built-in chain that are in the way of ours. No I/O.

Our rules must be first, so that no foreign rule accepts a packet that policy denies, and those that accept last,
so that foreign rules can drop. Other foreign rules may stand anywhere: to move ours past them would be a fight
over nothing. In the nat table ours only masquerade, and each rule there has packets of its own.
"""

from __future__ import annotations

_LOOK_ON = frozenset({"", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT"})
"""Targets that do not change a packet's fate; empty: the rule only counts."""

_NEVER_LET_PASS = _LOOK_ON | {"DROP", "REJECT"}
_NEVER_DROP = _LOOK_ON | {"ACCEPT"}


def hinders_above(table: str, target: str) -> bool:
    """Whether a foreign rule with this target (or chain) must not stand above ours."""
    return table != "nat" and target not in _NEVER_LET_PASS


def hinders_behind(table: str, target: str) -> bool:
    """Whether a foreign rule with this target (or chain) must not stand behind ours that accept."""
    return table != "nat" and target not in _NEVER_DROP
