"""The incremental engine: events in, changes of compiled policy out.

Only policies that select an endpoint of this node are compiled, and only their peers are followed. All replicas
of a Deployment share a policy class, so another replica changes set members and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from policy.index import PodIndex, Watched
from policy.ir import Chain, Delta, Deny, Jump, Program, Rule
from policy.model import (
    Direction,
    Family,
    Labels,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    ObjectKey,
    Pod,
)
from policy.names import class_chain, policy_chain
from policy.output import Output
from policy.peers import PeerSet
from policy.rules import RuleCompiler
from policy.selectors import matches

Classes = dict[Direction, frozenset[ObjectKey] | None]
"""Per direction the policies that select an endpoint; None: not restricted."""

_UNRESTRICTED: Classes = dict.fromkeys(Direction)


@dataclass(slots=True)
class _Endpoint:
    """``labels`` are the last known ones; None: never seen with a pod, so everything is denied."""

    local: LocalEndpoint
    labels: Labels | None
    subject: bool = True
    classes: Classes = field(default_factory=lambda: dict(_UNRESTRICTED))


@dataclass(slots=True)
class _Compiled:
    policy: NetworkPolicy
    endpoints: set[ObjectKey]
    sets: list[PeerSet]


@dataclass(slots=True)
class _Class:
    """``population`` counts its endpoints."""

    name: str
    population: int = 0


class Engine:
    """Compiled policy of one node for some families. Nothing here does I/O; one thread at a time."""

    def __init__(self, families: Iterable[Family] = tuple(Family)) -> None:
        self._outputs = {family: Output(family) for family in families}
        self._index = PodIndex()
        self._pods: dict[ObjectKey, Pod] = {}
        self._policies: dict[str, dict[ObjectKey, NetworkPolicy]] = {}
        self._endpoints: dict[ObjectKey, _Endpoint] = {}
        self._by_namespace: dict[str, dict[ObjectKey, _Endpoint]] = {}
        self._compiled: dict[ObjectKey, _Compiled] = {}
        self._sets: dict[str, PeerSet] = {}
        self._classes: dict[tuple[Direction, frozenset[ObjectKey]], _Class] = {}
        self._holders: dict[str, dict[ObjectKey, _Endpoint]] = {}

    # --- events --------------------------------------------------------------------------------------

    def upsert_namespace(self, namespace: Namespace) -> None:
        """A namespace is there, or has other labels."""
        if self._index.namespace(namespace.name) != namespace:
            self._relabel(namespace.name, namespace)

    def remove_namespace(self, name: str) -> None:
        """A namespace is gone."""
        if self._index.namespace(name) is not None:
            self._relabel(name, None)

    def _relabel(self, name: str, namespace: Namespace | None) -> None:
        for profile, left, joined in self._index.set_namespace(name, namespace):
            for pod in profile.pods.values():
                self._count(pod, left, -1)
                self._count(pod, joined, 1)

    def upsert_pod(self, pod: Pod) -> None:
        """A pod is there, or has changed."""
        key = pod.key
        before = self._pods.get(key)
        if before == pod:
            return
        self._pods[key] = pod
        self._move(key, before, pod)
        endpoint = self._endpoints.get(key)
        if endpoint is not None and (endpoint.labels != pod.labels or endpoint.subject is pod.host_network):
            endpoint.labels = pod.labels
            endpoint.subject = not pod.host_network
            self._select(key, endpoint)

    def remove_pod(self, key: ObjectKey) -> None:
        """A pod's object is gone. Its endpoint, if it is still there, keeps its class."""
        self._move(key, self._pods.pop(key, None), None)

    def upsert_policy(self, policy: NetworkPolicy) -> None:
        """A policy is there, or has changed."""
        policies = self._policies.setdefault(policy.namespace, {})
        if policies.get(policy.key) == policy:
            return
        policies[policy.key] = policy
        compiled = self._compiled.get(policy.key)
        if compiled is not None:
            self._compile(policy, compiled.endpoints)
        self._select_by(policy.key, policy)

    def remove_policy(self, key: ObjectKey) -> None:
        """A policy is gone."""
        policies = self._policies.get(key[0], {})
        if policies.pop(key, None) is not None:
            self._select_by(key, None)
            if not policies:
                del self._policies[key[0]]

    def upsert_endpoint(self, local: LocalEndpoint) -> None:
        """A pod interface of this node is there, or has other addresses."""
        key = local.key
        endpoint = self._endpoints.get(key)
        if endpoint is not None and endpoint.local == local:
            return
        pod = self._pods.get(key)
        scopes = self._scopes(pod)
        self._count(pod, scopes, -1)
        if endpoint is None:
            endpoint = _Endpoint(local, pod.labels if pod else None, not (pod and pod.host_network))
            self._endpoints[key] = endpoint
            self._by_namespace.setdefault(local.namespace, {})[key] = endpoint
        else:
            self._hold(key, endpoint.local.addresses, None)
            endpoint.local = local
        # Before a set is opened for the endpoint's class: that counts the pod by itself.
        self._count(pod, scopes, 1)
        self._hold(key, local.addresses, endpoint)
        self._select(key, endpoint)

    def remove_endpoint(self, key: ObjectKey) -> None:
        """A pod interface of this node is gone."""
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            return
        pod = self._pods.get(key)
        scopes = self._scopes(pod)
        self._count(pod, scopes, -1)
        del self._endpoints[key]
        self._count(pod, scopes, 1)
        neighbours = self._by_namespace[key[0]]
        del neighbours[key]
        if not neighbours:
            del self._by_namespace[key[0]]
        self._hold(key, endpoint.local.addresses, None)
        self._choose(key, endpoint, _UNRESTRICTED)

    # --- results -------------------------------------------------------------------------------------

    def flush(self) -> list[Delta]:
        """What has changed since the last flush, one delta for each family with changes."""
        return [delta for output in self._outputs.values() if (delta := output.flush())]

    def program(self, family: Family) -> Program:
        """Everything compiled for one family."""
        return self._outputs[family].program()

    def endpoint_policies(self, key: ObjectKey, direction: Direction) -> tuple[ObjectKey, ...] | None:
        """The policies that select an endpoint, sorted; None: not restricted, or no such endpoint."""
        endpoint = self._endpoints.get(key)
        policies = endpoint.classes[direction] if endpoint else None
        return None if policies is None else tuple(sorted(policies))

    def chains_of(self, key: ObjectKey) -> set[str]:
        """Names of all chains and sets that an endpoint's policy stands on."""
        names: set[str] = set()
        for direction in Direction:
            policies = self.endpoint_policies(key, direction)
            if policies is not None:
                names.add(class_chain(direction, policies))
                names.update(policy_chain(direction, policy) for policy in policies)
                names.update(s.name for policy in policies for s in self._compiled[policy].sets)
        return names

    # --- members -------------------------------------------------------------------------------------

    def _move(self, key: ObjectKey, before: Pod | None, after: Pod | None) -> None:
        """Bring what a pod is a member of up to date. A change that no set can see costs next to nothing."""
        old = self._index.profile(before) if before is not None and _is_peer(before) else None
        new = self._index.add(key, after) if after is not None and _is_peer(after) else None
        if old is new and before and after and (before.addresses, before.ports) == (after.addresses, after.ports):
            return
        if old is not None and before is not None:
            self._count(before, old.scopes, -1)
            if old is not new:
                self._index.remove(key, old)
        if new is not None:
            self._count(after, new.scopes, 1)

    def _scopes(self, pod: Pod | None) -> Iterable[Watched]:
        return self._index.profile(pod).scopes if pod is not None and _is_peer(pod) else ()

    def _count(self, pod: Pod | None, scopes: Iterable[Watched], sign: int) -> None:
        if pod is None or not scopes:
            return
        addresses = self._addresses(pod)
        for watched in scopes:
            for watcher in watched.watchers:
                watcher.add(self._outputs[watcher.family], watched, pod, addresses, sign)

    def _addresses(self, pod: Pod) -> tuple[str, ...]:
        """An endpoint's addresses are its pod's before the API server has heard of them."""
        endpoint = self._endpoints.get(pod.key)
        if endpoint is None:
            return pod.addresses
        return tuple(dict.fromkeys((*pod.addresses, *endpoint.local.addresses)))

    # --- classes -------------------------------------------------------------------------------------

    def _select(self, key: ObjectKey, endpoint: _Endpoint) -> None:
        """Find the policies that select an endpoint."""
        if endpoint.labels is None:
            self._choose(key, endpoint, dict.fromkeys(Direction, frozenset()))
            return
        labels = endpoint.labels
        selecting = [
            policy
            for policy in self._policies.get(key[0], {}).values()
            if endpoint.subject and matches(policy.selector, labels)
        ]
        classes = {
            direction: frozenset(p.key for p in selecting if p.rules(direction) is not None) or None
            for direction in Direction
        }
        self._choose(key, endpoint, classes)

    def _select_by(self, policy_key: ObjectKey, policy: NetworkPolicy | None) -> None:
        """Find the endpoints that one policy selects, now that it has changed or gone; others do not matter."""
        changed: dict[tuple[frozenset[ObjectKey] | None, bool], frozenset[ObjectKey] | None] = {}
        for key, endpoint in self._by_namespace.get(policy_key[0], {}).items():
            if endpoint.labels is None:
                continue
            selected = policy is not None and endpoint.subject and matches(policy.selector, endpoint.labels)
            classes: Classes = {}
            for direction, before in endpoint.classes.items():
                member = selected and policy is not None and policy.rules(direction) is not None
                if member is (before is not None and policy_key in before):
                    classes[direction] = before
                    continue
                # Endpoints of one class move together, so that their new class is made (and hashed) once.
                if (before, member) not in changed:
                    held, this = before or frozenset(), {policy_key}
                    changed[before, member] = (held | this if member else held - this) or None
                classes[direction] = changed[before, member]
            self._choose(key, endpoint, classes)

    def _choose(self, key: ObjectKey, endpoint: _Endpoint, classes: Classes) -> None:
        """Put an endpoint into its classes: compile what it needs first, drop what it needed last."""
        if classes == endpoint.classes:
            return
        before = _policies(endpoint.classes)
        after = _policies(classes)
        for policy_key in after - before:
            compiled = self._compiled.get(policy_key)
            if compiled is None:
                self._compile(self._policies[policy_key[0]][policy_key], {key})
            else:
                compiled.endpoints.add(key)
        self._set_classes(endpoint, classes)
        for policy_key in before - after:
            compiled = self._compiled[policy_key]
            compiled.endpoints.discard(key)
            if not compiled.endpoints:
                self._discard(policy_key)

    def _set_classes(self, endpoint: _Endpoint, classes: Classes) -> None:
        before = endpoint.classes
        endpoint.classes = dict(classes)
        for direction, policies in classes.items():
            if policies is not None:
                self._populate(direction, policies, 1)
        for address in endpoint.local.addresses:
            self._publish(address)
        for direction, policies in before.items():
            if policies is not None:
                self._populate(direction, policies, -1)

    def _hold(self, key: ObjectKey, addresses: Iterable[str], endpoint: _Endpoint | None) -> None:
        """An endpoint gets addresses, or (None) gives them back."""
        for address in addresses:
            holders = self._holders.setdefault(address, {})
            if endpoint is not None:
                holders[key] = endpoint
            else:
                holders.pop(key, None)
                if not holders:
                    del self._holders[address]
            self._publish(address)

    def _publish(self, address: str) -> None:
        """Output an address's class.

        An address that goes from one endpoint to another may have two for a moment, and the one that leaves must
        not take away what the one that stays needs. Which of the two counts must not depend on who came first.
        """
        output = self._outputs.get(Family.V6 if ":" in address else Family.V4)
        if output is None:
            return
        holders = self._holders.get(address)
        classes = holders[min(holders)].classes if holders else _UNRESTRICTED
        for direction, policies in classes.items():
            chain = None if policies is None else self._classes[direction, policies].name
            output.set_class(direction, address, chain)

    def _populate(self, direction: Direction, policies: frozenset[ObjectKey], sign: int) -> None:
        """Count a class's endpoints; its chain exists while there is one."""
        held = self._classes.get((direction, policies))
        if held is None:
            held = self._classes[direction, policies] = _Class(class_chain(direction, policies))
            jumps = [Rule(Jump(policy_chain(direction, key))) for key in sorted(policies)]
            for output in self._outputs.values():
                output.set_chain(Chain(held.name, (*jumps, Rule(Deny()))))
        held.population += sign
        if not held.population:
            del self._classes[direction, policies]
            for output in self._outputs.values():
                output.remove_chain(held.name)

    # --- policies ------------------------------------------------------------------------------------

    def _compile(self, policy: NetworkPolicy, endpoints: set[ObjectKey]) -> None:
        """Make a policy's chains. Sets that it used before and still uses are not touched."""
        old = self._compiled.get(policy.key)
        sets: list[PeerSet] = []

        def use(wanted: PeerSet) -> PeerSet:
            sets.append(self._use(wanted))
            return sets[-1]

        for direction in Direction:
            name = policy_chain(direction, policy.key)
            rules = policy.rules(direction)
            for family, output in self._outputs.items():
                if rules is None:
                    output.remove_chain(name)
                else:
                    compiler = RuleCompiler(family, policy, direction, use)
                    chain_rules = (r for n, rule in enumerate(rules) for r in compiler.compile(n, rule))
                    output.set_chain(Chain(name, tuple(chain_rules)))
        self._compiled[policy.key] = _Compiled(policy, endpoints, sets)
        if old is not None:
            self._release(old.sets)

    def _discard(self, key: ObjectKey) -> None:
        compiled = self._compiled.pop(key)
        for direction in Direction:
            for output in self._outputs.values():
                output.remove_chain(policy_chain(direction, key))
        self._release(compiled.sets)

    def _use(self, wanted: PeerSet) -> PeerSet:
        """One more policy rule uses a set of this content."""
        held = self._sets.get(wanted.name)
        if held is None:
            held = self._sets[wanted.name] = wanted
            output = self._outputs[held.family]
            held.open(self._index, output, self._addresses)
        held.references += 1
        return held

    def _release(self, sets: Iterable[PeerSet]) -> None:
        for peers in sets:
            peers.references -= 1
            if not peers.references:
                del self._sets[peers.name]
                peers.close(self._index, self._outputs[peers.family])


def _is_peer(pod: Pod) -> bool:
    """Whether the pod can be in a set: a host-network pod has its node's address, a finished one has none."""
    return pod.active and not pod.host_network


def _policies(classes: Classes) -> set[ObjectKey]:
    return {key for policies in classes.values() if policies for key in policies}
