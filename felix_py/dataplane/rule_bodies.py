"""Whether rules with our hash still do what the hash stands for.

A rule's comment holds the hash of the planned rule; somebody may have altered the rest. The tools print a rule
other than we wrote it, so the two are compared by meaning. That costs tens of microseconds a rule, so the texts
of rules found right are remembered: a refresh without changes only looks each text up.
"""

from __future__ import annotations

from collections.abc import Iterable

from felix_py import log
from felix_py.dataplane.iptables_text import Rule
from felix_py.ruleset.compare import Likeness, compare


class RuleBodies:
    """The rule texts of one family that were found right; a text contains its hash, so it stays right."""

    def __init__(self) -> None:
        self._right: set[str] = set()
        self._log = log.get("iptables")

    def altered(self, wanted: Rule, actual: Rule) -> bool:
        """Whether a rule read back does something else than the wanted one with the same hash."""
        if actual.text == wanted.text or actual.text in self._right:
            return False
        likeness = compare(wanted.body, actual.body)
        if likeness is Likeness.DIFFERENT:
            return True
        if likeness is Likeness.UNKNOWN:
            # Another version of the tools may print it so; a right rule must not be rewritten for ever.
            self._log.debug("a rule cannot be compared; its hash counts", rule=actual.text)
        self._right.add(actual.text)
        return False

    def learn(self, wanted: Rule, actual: Rule) -> None:
        """Note a rule that was just written and read back: its text is right, however it is printed."""
        if self.altered(wanted, actual):
            self._log.debug("the kernel prints a rule differently", wanted=wanted.text, printed=actual.text)
            self._right.add(actual.text)

    def keep(self, texts: Iterable[str]) -> None:
        """Forget all texts but those of existing rules."""
        self._right.intersection_update(texts)
