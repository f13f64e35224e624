"""Whether rules with our hash still do what the hash stands for.

A rule's comment, or its chain's seal, says which planned rule it was; somebody may have altered it. The tools may
print a rule other than we wrote it, so the two are compared by meaning. That costs tens of microseconds a rule,
so the texts of rules found right are remembered: a refresh without changes only looks each text up.
"""

from __future__ import annotations

from collections.abc import Iterable

from felix_py import log
from felix_py.dataplane.iptables_text import Rule
from felix_py.ruleset import seal
from felix_py.ruleset.compare import Likeness, compare
from felix_py.ruleset.words import split


class RuleBodies:
    """The rule texts of one family that were found right, with the text of the wanted rule."""

    def __init__(self) -> None:
        self._right: dict[str, str] = {}
        self._log = log.get("iptables")

    def altered(self, wanted: Rule, actual: Rule) -> bool:
        """Whether a rule read back does something else than the wanted one with the same hash."""
        if actual.text == wanted.text or self._right.get(actual.text) == wanted.text:
            return False
        likeness = compare(wanted.body, actual.body)
        if likeness is Likeness.DIFFERENT:
            return True
        if likeness is Likeness.UNKNOWN:
            if not seal.commented(split(actual.text)):
                return True  # its place in the chain alone says that it is ours: written again, it is learned
            # Another version of the tools may print it so; a right rule must not be rewritten for ever.
            self._log.debug("a rule cannot be compared; its hash counts", rule=actual.text)
        self._right[actual.text] = wanted.text
        return False

    def learn(self, wanted: Rule, actual: Rule) -> None:
        """Note a rule that was just written and read back: its text is right, however it is printed."""
        if self.altered(wanted, actual):
            self._log.debug("the kernel prints a rule differently", wanted=wanted.text, printed=actual.text)
            self._right[actual.text] = wanted.text

    def keep(self, texts: Iterable[str]) -> None:
        """Forget all texts but those of existing rules."""
        existing = set(texts)
        self._right = {text: wanted for text, wanted in self._right.items() if text in existing}
