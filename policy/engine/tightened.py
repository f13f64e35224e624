"""Changes of compiled policy that may newly deny packets, so that connections must be judged anew.

Every answer errs towards "tightened". Changes that only loosen are known by their form: one more Allow rule, one
more member of a set that only Allow rules match, one more NetworkPolicy on an endpoint that is isolated already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from policy.ir import Action, Allow, Chain, ChainKind, Deny, Jump, Pass, SetId

_JOINING: frozenset[type[Action]] = frozenset({Deny, Pass})
_LEAVING: frozenset[type[Action]] = frozenset({Allow, Pass})


class SetUses:
    """The actions of the rules that match each set."""

    def __init__(self) -> None:
        self._uses: dict[SetId, Counter[type[Action]]] = {}

    def replace(self, before: Chain | None, after: Chain | None) -> None:
        """Replace a chain's rules; None: it does not exist."""
        self._add(after, 1)
        self._add(before, -1)

    def _add(self, chain: Chain | None, sign: int) -> None:
        for rule in chain.rules if chain else ():
            for match in rule.match.sets:
                uses = self._uses.setdefault(match.id, Counter())
                uses[type(rule.action)] += sign
                if not uses[type(rule.action)]:
                    del uses[type(rule.action)]
                    if not uses:
                        del self._uses[match.id]

    def tightening(self, set_: SetId, members: dict[str, bool]) -> Iterable[str]:
        """The members that joined (True) or left a set and may newly be denied packets by that."""
        uses = self._uses.get(set_, Counter())
        joining, leaving = not _JOINING.isdisjoint(uses), not _LEAVING.isdisjoint(uses)
        return (member for member, present in members.items() if (joining if present else leaving))


def is_tightened(before: Chain, after: Chain | None) -> bool:
    """Whether a policy's new chain may deny what the old one allowed; a removed one shows in the classes."""
    if after is None:
        return False
    only_allow = all(isinstance(rule.action, Allow) for rule in (*before.rules, *after.rules))
    return not only_allow or not {r.match for r in before.rules} <= {r.match for r in after.rules}


def is_class_tightened(before: Chain | None, after: Chain | None) -> bool:
    """Whether an endpoint's new class chain may deny what the old one allowed. None: not restricted.

    NetworkPolicies only allow, so one more of them denies nothing to an endpoint that others isolate already; the
    policies of a tier may deny.
    """
    if after is None:
        return False
    if before is None or len(before.rules) == 1 or not isinstance(before.rules[-1].action, Deny):
        return True  # one Deny alone is DENY_ALL: what the endpoint was allowed before is unknown
    more = set(after.rules).difference(before.rules)
    return not set(before.rules) <= set(after.rules) or any(
        not isinstance(rule.action, Jump) or rule.action.chain.kind is ChainKind.TIER for rule in more
    )
