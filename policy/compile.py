"""The incremental engine: events in, changes of compiled policy out.

Only policies that select an endpoint of this node are compiled, and only their peers are followed. All replicas
of a Deployment share a policy class, so another replica changes set members and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from policy.index import PodIndex, Profile, Watched
from policy.ir import (
    Allow,
    Chain,
    Delta,
    Deny,
    Jump,
    Match,
    PortRange,
    Program,
    Rule,
    SetMatch,
    Side,
)
from policy.model import (
    Direction,
    Family,
    Labels,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    ObjectKey,
    Pod,
    PolicyRule,
    Port,
    Protocol,
)
from policy.names import class_chain, policy_chain
from policy.output import Output
from policy.peers import PeerSet, named_port_peers, named_port_subjects, peer_set
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
        self._populations: dict[str, int] = {}

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
        for profile, before in self._index.set_namespace(name, namespace):
            for pod in profile.pods.values():
                self._count(pod, before, -1)
                self._count(pod, profile.scopes, 1)

    def upsert_pod(self, pod: Pod) -> None:
        """A pod is there, or has changed."""
        before = self._pods.get(pod.key)
        if before == pod:
            return
        self._take_out(before)
        self._pods[pod.key] = pod
        self._put_in(pod)
        endpoint = self._endpoints.get(pod.key)
        if endpoint is not None and (endpoint.labels != pod.labels or endpoint.subject is pod.host_network):
            endpoint.labels = pod.labels
            endpoint.subject = not pod.host_network
            self._select(pod.key, endpoint)

    def remove_pod(self, key: ObjectKey) -> None:
        """A pod's object is gone. Its endpoint, if it is still there, keeps its class."""
        self._take_out(self._pods.pop(key, None))

    def upsert_policy(self, policy: NetworkPolicy) -> None:
        """A policy is there, or has changed."""
        policies = self._policies.setdefault(policy.namespace, {})
        if policies.get(policy.key) == policy:
            return
        policies[policy.key] = policy
        compiled = self._compiled.get(policy.key)
        if compiled is not None:
            self._compile(policy, compiled.endpoints)
        self._select_namespace(policy.namespace)

    def remove_policy(self, key: ObjectKey) -> None:
        """A policy is gone."""
        policies = self._policies.get(key[0], {})
        if policies.pop(key, None) is not None:
            if not policies:
                del self._policies[key[0]]
            self._select_namespace(key[0])

    def upsert_endpoint(self, local: LocalEndpoint) -> None:
        """A pod interface of this node is there, or has other addresses."""
        endpoint = self._endpoints.get(local.key)
        if endpoint is not None and endpoint.local == local:
            return
        pod = self._pods.get(local.key)
        self._take_out(pod)
        if endpoint is None:
            endpoint = _Endpoint(local, pod.labels if pod else None, not (pod and pod.host_network))
            self._endpoints[local.key] = endpoint
            self._by_namespace.setdefault(local.namespace, {})[local.key] = endpoint
        else:
            self._set_classes(endpoint, _UNRESTRICTED)
            endpoint.local = local
        if pod is not None:
            self._put_in(pod)
        self._select(local.key, endpoint)

    def remove_endpoint(self, key: ObjectKey) -> None:
        """A pod interface of this node is gone."""
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            return
        pod = self._pods.get(key)
        self._take_out(pod)
        self._choose(key, endpoint, _UNRESTRICTED)
        del self._endpoints[key]
        self._by_namespace[key[0]].pop(key)
        if pod is not None:
            self._put_in(pod)

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

    def _put_in(self, pod: Pod) -> None:
        if pod.active and not pod.host_network:
            self._count(pod, self._index.add(pod).scopes, 1)

    def _take_out(self, pod: Pod | None) -> None:
        if pod is not None and pod.active and not pod.host_network:
            profile: Profile = self._index.profile(pod)
            self._count(pod, profile.scopes, -1)
            self._index.remove(pod)

    def _count(self, pod: Pod, scopes: Iterable[Watched], sign: int) -> None:
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

    def _select_namespace(self, namespace: str) -> None:
        for key, endpoint in self._by_namespace.get(namespace, {}).items():
            self._select(key, endpoint)

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

    def _choose(self, key: ObjectKey, endpoint: _Endpoint, classes: Classes) -> None:
        """Put an endpoint into its classes: compile what it needs first, drop what it needed last."""
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
        for direction, policies in classes.items():
            before = endpoint.classes[direction]
            if policies is not None:
                self._populate(direction, policies, 1)
            chain = None if policies is None else class_chain(direction, policies)
            for address in endpoint.local.addresses:
                family = Family.V6 if ":" in address else Family.V4
                if family in self._outputs:
                    self._outputs[family].set_class(direction, address, chain)
            if before is not None:
                self._populate(direction, before, -1)
        endpoint.classes = dict(classes)

    def _populate(self, direction: Direction, policies: frozenset[ObjectKey], sign: int) -> None:
        """Count a class's endpoints; its chain exists while there is one."""
        name = class_chain(direction, policies)
        before = self._populations.get(name, 0)
        self._populations[name] = before + sign
        if not before:
            jumps = [Rule(Jump(policy_chain(direction, key))) for key in sorted(policies)]
            for output in self._outputs.values():
                output.set_chain(Chain(name, (*jumps, Rule(Deny()))))
        elif not before + sign:
            del self._populations[name]
            for output in self._outputs.values():
                output.remove_chain(name)

    # --- policies ------------------------------------------------------------------------------------

    def _compile(self, policy: NetworkPolicy, endpoints: set[ObjectKey]) -> None:
        """Make a policy's chains. Sets that it used before and still uses are not touched."""
        old = self._compiled.get(policy.key)
        sets: list[PeerSet] = []
        for direction in Direction:
            name = policy_chain(direction, policy.key)
            rules = policy.rules(direction)
            for family, output in self._outputs.items():
                if rules is None:
                    output.remove_chain(name)
                else:
                    compiler = _RuleCompiler(self, family, policy, direction, sets)
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

    def use(self, wanted: PeerSet) -> PeerSet:
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


def _policies(classes: Classes) -> set[ObjectKey]:
    return {key for policies in classes.values() if policies for key in policies}


class _RuleCompiler:
    """One direction of one policy for one family: policy rules to ir rules."""

    def __init__(
        self, engine: Engine, family: Family, policy: NetworkPolicy, direction: Direction, sets: list[PeerSet]
    ) -> None:
        self._engine = engine
        self._family = family
        self._policy = policy
        self._direction = direction
        self._sets = sets

    def compile(self, number: int, rule: PolicyRule) -> Iterator[Rule]:
        """The ir rules of one policy rule; none where nothing of this family can match."""
        about = f"{self._policy.namespace}/{self._policy.name} {self._direction.lower()}[{number}]"
        for match in self._matches(rule):
            yield Rule(Allow(), match, about)

    def _matches(self, rule: PolicyRule) -> Iterator[Match]:
        ports = rule.ports if rule.ports is not None else ()
        plain = [port for port in ports if not isinstance(port.port, str)]
        named = [port for port in ports if isinstance(port.port, str)]
        if rule.ports is None or plain:
            peers = self._peers(rule)
            if peers is not None:
                for protocol, ranges in _ranges(plain) if rule.ports is not None else [(None, ())]:
                    yield Match(protocol, ranges, peers)
        for port in dict.fromkeys(named):
            sets = self._named(rule, port)
            if sets is not None:
                yield Match(port.protocol, (), sets)

    def _peers(self, rule: PolicyRule) -> tuple[SetMatch, ...] | None:
        """The set match of the rule's peers: () for any peer, None where no address of this family can match."""
        if rule.peers is None:
            return ()
        side = Side.SOURCE if self._direction is Direction.INGRESS else Side.DESTINATION
        return self._use(peer_set(self._family, self._policy, rule.peers), side)

    def _named(self, rule: PolicyRule, port: Port) -> tuple[SetMatch, ...] | None:
        """A named port belongs to the destination: the peers in egress, the selected pods in ingress."""
        if self._direction is Direction.EGRESS:
            return self._use(named_port_peers(self._family, self._policy, rule.peers, port), Side.DESTINATION)
        peers = self._peers(rule)
        subjects = self._use(named_port_subjects(self._family, self._policy, port), Side.DESTINATION)
        return None if peers is None or subjects is None else (*peers, *subjects)

    def _use(self, wanted: PeerSet, side: Side) -> tuple[SetMatch, ...] | None:
        if wanted.empty:
            return None
        used = self._engine.use(wanted)
        self._sets.append(used)
        return (SetMatch(used.name, used.kind, side),)


def _ranges(ports: Iterable[Port]) -> Iterator[tuple[Protocol, tuple[PortRange, ...]]]:
    """Ports by protocol, merged where they touch; () is every port of the protocol."""
    spans: dict[Protocol, list[tuple[int, int]]] = {}
    for port in ports:
        first = port.port if isinstance(port.port, int) else 0
        last = first if port.end_port is None else port.end_port
        spans.setdefault(port.protocol, []).append((first, last if port.port is not None else 65535))
    for protocol, found in sorted(spans.items()):
        merged: list[tuple[int, int]] = []
        for first, last in sorted(found):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        whole = any(first == 0 for first, _ in merged)
        yield protocol, () if whole else tuple(PortRange(*span) for span in merged)
