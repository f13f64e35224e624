"""Policy classes, the sets of policies that select an endpoint, and their chains.

The class chain of a direction goes through the tiers in their order::

    Jump(chain of the Admin tier)       its policies by precedence; a Pass leaves it
    Allow                               packets of a pod to itself, if a NetworkPolicy isolates it
    Jump(chain of each NetworkPolicy)
    Deny                                if any NetworkPolicy isolates the endpoint; then this is the end
    Jump(chain of the Baseline tier)    else

Tier chains are named by their content, so that all classes with the same cluster policies share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from policy.engine.output import Output
from policy.ir import Allow, Chain, ChainId, Deny, Jump, Match, Rule
from policy.model import ClusterPolicy, Direction, Family, NetworkPolicy, PolicyRef, Tier
from policy.names import class_chain, policy_chain, tier_chain


@dataclass(frozen=True, slots=True)
class PolicyClass:
    """An endpoint's policies in one direction, in order of evaluation.

    ``isolated``: what they do not decide is denied, and there is no Baseline tier.
    """

    admin: tuple[PolicyRef, ...] = ()
    network: tuple[PolicyRef, ...] = ()
    baseline: tuple[PolicyRef, ...] = ()
    isolated: bool = False

    @classmethod
    def of(cls, policies: Iterable[NetworkPolicy | ClusterPolicy]) -> PolicyClass | None:
        """Returns the class of an endpoint with these policies, or None if it is not restricted."""
        cluster: dict[Tier, list[ClusterPolicy]] = {Tier.ADMIN: [], Tier.BASELINE: []}
        network: list[PolicyRef] = []
        for policy in policies:
            if isinstance(policy, ClusterPolicy):
                cluster[policy.tier].append(policy)
            else:
                network.append(policy.ref)
        admin = _by_precedence(cluster[Tier.ADMIN])
        if network:
            return cls(admin, tuple(sorted(network)), (), isolated=True)
        baseline = _by_precedence(cluster[Tier.BASELINE])
        return cls(admin, (), baseline) if admin or baseline else None

    @property
    def policies(self) -> tuple[PolicyRef, ...]:
        """All of them, in order of evaluation."""
        return (*self.admin, *self.network, *self.baseline)


DENY_ALL = PolicyClass(isolated=True)
"""The class of an endpoint whose policies cannot be known yet."""


def _by_precedence(policies: Iterable[ClusterPolicy]) -> tuple[PolicyRef, ...]:
    return tuple(policy.ref for policy in sorted(policies, key=lambda policy: policy.precedence))


@dataclass(slots=True)
class _Held:
    """A chain, and the number of endpoints (of a class) or classes (of a tier) that need it."""

    id: ChainId
    policies: tuple[PolicyRef, ...]
    users: int = 0


class ClassChains:
    """The reference-counted chains of classes and tiers in the outputs."""

    def __init__(self, outputs: Mapping[Family, Output]) -> None:
        self._outputs = outputs
        self._classes: dict[tuple[Direction, PolicyClass], _Held] = {}
        self._tiers: dict[tuple[Direction, tuple[PolicyRef, ...]], _Held] = {}
        self._by_id: dict[ChainId, _Held] = {}

    def enter(self, direction: Direction, chosen: PolicyClass) -> None:
        """Add an endpoint to a class."""
        held = self._classes.get((direction, chosen))
        if held is None:
            chain = class_chain(direction, chosen.admin, chosen.network, chosen.baseline)
            held = self._classes[direction, chosen] = _Held(chain, chosen.policies)
            self._add(held, Chain(chain, tuple(self._class_rules(direction, chosen))))
        held.users += 1

    def leave(self, direction: Direction, chosen: PolicyClass) -> None:
        """Remove an endpoint from a class; the last one removes the class."""
        held = self._classes[direction, chosen]
        held.users -= 1
        if not held.users:
            del self._classes[direction, chosen]
            self._remove(held)
            for policies in (chosen.admin, chosen.baseline):
                if policies:
                    self._leave_tier(direction, policies)

    def chain(self, direction: Direction, chosen: PolicyClass) -> ChainId:
        """The chain of a class that has endpoints."""
        return self._classes[direction, chosen].id

    def chains(self, direction: Direction, chosen: PolicyClass) -> set[ChainId]:
        """The chains of a class that has endpoints, and of its tiers."""
        tiers = (self._tiers[direction, policies].id for policies in (chosen.admin, chosen.baseline) if policies)
        return {self.chain(direction, chosen), *tiers}

    def policies(self, chain: ChainId) -> tuple[PolicyRef, ...]:
        """The policies of a class or tier chain, in order of evaluation; () if there is no such chain."""
        held = self._by_id.get(chain)
        return held.policies if held else ()

    def _class_rules(self, direction: Direction, chosen: PolicyClass) -> Iterator[Rule]:
        if chosen.admin:
            yield Rule(Jump(self._enter_tier(direction, chosen.admin)))
        for ref in chosen.network:
            yield Rule(Jump(policy_chain(direction, ref)))
        if chosen.network:  # last, since it costs as much as a policy and rarely matches
            yield Rule(Allow(), Match(itself=True))
        if chosen.isolated:
            yield Rule(Deny())
        elif chosen.baseline:
            yield Rule(Jump(self._enter_tier(direction, chosen.baseline)))

    def _enter_tier(self, direction: Direction, policies: tuple[PolicyRef, ...]) -> ChainId:
        held = self._tiers.get((direction, policies))
        if held is None:
            held = self._tiers[direction, policies] = _Held(tier_chain(direction, policies), policies)
            jumps = tuple(Rule(Jump(policy_chain(direction, ref))) for ref in policies)
            self._add(held, Chain(held.id, jumps))
        held.users += 1
        return held.id

    def _leave_tier(self, direction: Direction, policies: tuple[PolicyRef, ...]) -> None:
        held = self._tiers[direction, policies]
        held.users -= 1
        if not held.users:
            del self._tiers[direction, policies]
            self._remove(held)

    def _add(self, held: _Held, chain: Chain) -> None:
        self._by_id[held.id] = held
        for output in self._outputs.values():
            output.set_chain(chain)

    def _remove(self, held: _Held) -> None:
        del self._by_id[held.id]
        for output in self._outputs.values():
            output.remove_chain(held.id)
