"""Whether rules that carry our hash still do what the hash stands for.

A rule's comment says which rule it was meant to be; somebody may have altered the rest. What the tools print is
not what we wrote, so the two are compared by meaning. That costs tens of microseconds a rule, and so the text of
a rule that was found right is remembered: a refresh in which nothing has changed looks each text up, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable

from felix_py import log
from felix_py.dataplane.iptables_text import Rule
from felix_py.ruleset.compare import Likeness, compare


class RuleBodies:
    """The rule texts of one family that were found right. The hash is part of the text, so right stays right."""

    def __init__(self) -> None:
        self._right: set[str] = set()
        self._log = log.get("iptables")

    def altered(self, wanted: Rule, actual: Rule) -> bool:
        """Whether a rule of ours, as read back, does something else than the wanted one of the same hash."""
        if actual.text == wanted.text or actual.text in self._right:
            return False
        likeness = compare(wanted.body, actual.body)
        if likeness is Likeness.DIFFERENT:
            return True
        if likeness is Likeness.UNKNOWN:
            # Another version of the tools may print it so: what is right must not be written again for ever.
            self._log.debug("a rule cannot be compared; its hash counts", rule=actual.text)
        self._right.add(actual.text)
        return False

    def learn(self, wanted: Rule, actual: Rule) -> None:
        """Take a rule that was just written and read back: whatever it looks like now, it is right."""
        if self.altered(wanted, actual):
            self._log.debug("the kernel prints a rule differently", wanted=wanted.text, printed=actual.text)
            self._right.add(actual.text)

    def keep(self, texts: Iterable[str]) -> None:
        """Forget all but these, the texts of the rules that there are."""
        self._right.intersection_update(texts)
