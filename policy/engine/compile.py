"""The incremental engine: events in, changes of compiled policy out.

Only policies that select an endpoint of this node are compiled, and only their peers are watched. All replicas of
a Deployment share a policy class, so another replica only changes set members.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from policy.change import Change
from policy.engine.classes import DENY_ALL, ClassChains, PolicyClass
from policy.engine.index import NODES, PodIndex, Watched
from policy.engine.output import Output
from policy.engine.peers import AnyPolicy, PeerSet
from policy.engine.rules import RuleCompiler
from policy.holders import Holders, claimed
from policy.ir import Chain, ChainId, Delta, Program, SetId
from policy.model import (
    ClusterPolicy,
    ClusterRule,
    Direction,
    Family,
    Labels,
    LocalEndpoint,
    Namespace,
    NetworkPolicy,
    Node,
    ObjectKey,
    Pod,
    PolicyRef,
    PolicyRule,
)
from policy.names import policy_chain
from policy.selectors import EVERYTHING, matches

Classes = dict[Direction, PolicyClass | None]
"""Per direction the class of an endpoint; None: not restricted."""

_UNRESTRICTED: Classes = dict.fromkeys(Direction)

_Had = tuple[Pod, tuple[str, ...]]
"""A pod, and the addresses that it had before a change."""

_CLUSTER = ""
"""The namespace of cluster-scoped policies."""


@dataclass(slots=True)
class _Endpoint:
    """``labels`` are the last known ones; None: its pod was never seen, so everything is denied. ``pod``: the
    current one of its name. ``known``: whether its policies can be determined. ``selecting``: per direction all
    policies that select it, also those that its class leaves out."""

    local: LocalEndpoint
    labels: Labels | None
    pod: Pod | None
    subject: bool = True
    known: bool = False
    selecting: dict[Direction, frozenset[PolicyRef]] = field(default_factory=dict)
    classes: Classes = field(default_factory=lambda: dict(_UNRESTRICTED))


@dataclass(slots=True)
class _Compiled:
    policy: AnyPolicy
    endpoints: set[ObjectKey]
    sets: list[PeerSet]


class Engine:
    """Compiled policy of one node for some families. Nothing here does I/O; one thread at a time."""

    def __init__(self, families: Iterable[Family] = tuple(Family)) -> None:
        self._outputs = {family: Output(family) for family in families}
        self._index = PodIndex()
        self._by_scope: dict[str, dict[PolicyRef, AnyPolicy]] = {}
        self._endpoints: dict[ObjectKey, _Endpoint] = {}
        self._by_namespace: dict[str, dict[ObjectKey, _Endpoint]] = {}
        self._compiled: dict[PolicyRef, _Compiled] = {}
        self._users: dict[ChainId | SetId, list[PolicyRef]] | None = None
        self._sets: dict[tuple[Family, SetId], PeerSet] = {}
        self._classes = ClassChains(self._outputs)
        self.holders = Holders()

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that it compiles for."""
        return tuple(self._outputs)

    # --- events --------------------------------------------------------------------------------------

    def fold(self, change: Change[object]) -> None:
        """Apply a change of a pod, namespace, node or policy. An endpoint whose pod is gone keeps its class."""
        if change.before == change.after:
            return
        if pod := change.of(Pod):
            self._fold_pod(pod.newest.key, pod.before, pod.after)
        elif node := change.of(Node):
            self._fold_pod((NODES, node.newest.name), _peer(node.before), _peer(node.after))
        elif namespace := change.of(Namespace):
            self._relabel(namespace.newest.name, namespace.after)
        elif policy := change.of(NetworkPolicy):
            self._fold_policy(policy.newest.ref, policy.after)
        elif cluster_policy := change.of(ClusterPolicy):
            self._fold_policy(cluster_policy.newest.ref, cluster_policy.after)

    def _relabel(self, name: str, namespace: Namespace | None) -> None:
        for profile, left, joined in self._index.set_namespace(name, namespace):
            for pod in profile.pods.values() if left or joined else ():
                addresses = self._addresses(pod)
                self._count(pod, left, addresses, -1)
                self._count(pod, joined, addresses, 1)
        if _CLUSTER in self._by_scope:
            for key, endpoint in self._by_namespace.get(name, {}).items():
                self._select(key, endpoint)

    def _fold_pod(self, key: ObjectKey, before: Pod | None, after: Pod | None) -> None:
        self._move(key, before, after)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            return
        endpoint.pod = after
        if (
            after is not None
            and endpoint.local.stands_for(after)
            and (endpoint.labels != after.labels or endpoint.subject is after.host_network)
        ):
            endpoint.labels = after.labels
            endpoint.subject = not after.host_network
            self._select(key, endpoint)

    def _fold_policy(self, ref: PolicyRef, policy: AnyPolicy | None) -> None:
        if policy is not None:
            self._by_scope.setdefault(ref.namespace, {})[ref] = policy
            compiled = self._compiled.get(ref)
            if compiled is not None:
                self._compile(policy, compiled.endpoints)
        else:
            policies = self._by_scope[ref.namespace]
            del policies[ref]
            if not policies:
                del self._by_scope[ref.namespace]
        self._select_by(ref)

    def attach(self, local: LocalEndpoint, pod: Pod | None) -> None:
        """Add or update a pod interface of this node; ``pod``: the pod of its name, as it was folded last."""
        key = local.key
        endpoint = self._endpoints.get(key)
        if endpoint is not None and endpoint.local == local:
            return
        known = pod if pod is not None and local.stands_for(pod) else None
        before = endpoint.local if endpoint else None
        # This comes before a set is opened for the endpoint's class, which counts the pod itself.
        if endpoint is None:
            endpoint = _Endpoint(local, None, pod)
            self._by_namespace.setdefault(local.namespace, {})[key] = endpoint
        elif endpoint.local.uid != local.uid:
            endpoint.labels, endpoint.subject = None, True
        if known is not None:
            endpoint.labels, endpoint.subject = known.labels, not known.host_network
        elif not local.namespace:
            endpoint.labels, endpoint.subject = (), False
        self._lease(key, before, local, endpoint)
        self._select(key, endpoint)

    def detach(self, key: ObjectKey) -> None:
        """Remove a pod interface of this node."""
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            return
        self._lease(key, endpoint.local, None, endpoint)
        neighbours = self._by_namespace[key[0]]
        del neighbours[key]
        if not neighbours:
            del self._by_namespace[key[0]]
        self._choose(key, endpoint, _UNRESTRICTED)

    def _lease(
        self, key: ObjectKey, before: LocalEndpoint | None, after: LocalEndpoint | None, endpoint: _Endpoint
    ) -> None:
        """Replace the leases of an endpoint; the owners of its addresses may change."""
        pod = endpoint.pod
        was, now = claimed(pod, before), claimed(pod, after)
        held = dict.fromkeys(address for local in (before, after) if local for address in local.addresses)
        had = self._having(key, (*was, *now, *held), pod)
        if after is None:
            del self._endpoints[key]
        else:
            endpoint.local = after
            self._endpoints[key] = endpoint
        self.holders.lease(key, before, after)
        self.holders.claim(key, was, now, pod)
        self._recount(had)
        for address in held:
            self._publish(address)

    # --- results -------------------------------------------------------------------------------------

    def flush(self) -> list[Delta]:
        """Returns the changes since the last flush, one delta for each family with changes."""
        return [delta for output in self._outputs.values() if (delta := output.flush())]

    def program(self, family: Family) -> Program:
        """Everything compiled for one family."""
        return self._outputs[family].program()

    def endpoint_policies(self, key: ObjectKey, direction: Direction) -> tuple[PolicyRef, ...] | None:
        """The policies of an endpoint's class, in order; None: not restricted, or no such endpoint."""
        endpoint = self._endpoints.get(key)
        chosen = endpoint.classes[direction] if endpoint else None
        return None if chosen is None else chosen.policies

    def chains_of(self, key: ObjectKey) -> set[ChainId | SetId]:
        """All chains and sets that an endpoint's policy uses."""
        found: set[ChainId | SetId] = set()
        endpoint = self._endpoints.get(key)
        for direction, chosen in endpoint.classes.items() if endpoint else ():
            if chosen is not None:
                found.update(self._classes.chains(direction, chosen))
                found.update(policy_chain(direction, ref) for ref in chosen.policies)
                found.update(s.id for ref in chosen.policies for s in self._compiled[ref].sets)
        return found

    def policies_using(self, used: ChainId | SetId) -> tuple[PolicyRef, ...]:
        """The policies that use a chain or a set, a class's in order of evaluation; () if there are none."""
        if isinstance(used, ChainId) and (found := self._classes.policies(used)):
            return found
        if self._users is None:  # cached, since callers may ask for thousands at a time
            self._users = {}
            for ref, compiled in sorted(self._compiled.items()):
                chains = {policy_chain(direction, ref) for direction in Direction}
                for one in chains | {peers.id for peers in compiled.sets}:
                    self._users.setdefault(one, []).append(ref)
        return tuple(self._users.get(used, ()))

    # --- members -------------------------------------------------------------------------------------

    def _move(self, key: ObjectKey, before: Pod | None, after: Pod | None) -> None:
        """Update the set memberships of a pod. A change without effect on sets costs next to nothing."""
        old = self._index.profile(before) if before is not None and _is_peer(before) else None
        had = self._addresses(before) if before is not None and old is not None else ()
        rivals = self._claim(key, before, after)
        new = self._index.add(key, after) if after is not None and _is_peer(after) else None
        has = self._addresses(after) if after is not None and new is not None else ()
        if old is not new or had != has or (before and after and before.ports != after.ports):
            if old is not None and before is not None:
                self._count(before, old.scopes, had, -1)
                if old is not new:
                    self._index.remove(key, old)
            if after is not None and new is not None:
                self._count(after, new.scopes, has, 1)
        self._recount(rivals)

    def _claim(self, key: ObjectKey, before: Pod | None, after: Pod | None) -> list[_Had]:
        """Replace a pod's claims; returns other pods that may be affected, with their addresses until now."""
        if key[0] == NODES:
            return []
        endpoint = self._endpoints.get(key) if key[0] in self._by_namespace else None
        local = endpoint.local if endpoint else None
        was, now = claimed(before, local), claimed(after, local)
        rivals = self._having(key, (*was, *now) if was != now else was, None)
        self.holders.claim(key, was, now, after)
        return rivals

    def _having(self, key: ObjectKey, addresses: Iterable[str], own: Pod | None) -> list[_Had]:
        """Other pods that claim any of the addresses, and ``own`` if given, with the addresses that they have."""
        pods = self.holders.rivals(key, addresses)
        if own is not None:
            pods.append(own)
        return [(pod, self._addresses(pod)) for pod in pods]

    def _recount(self, pods: Iterable[_Had]) -> None:
        """Update the set memberships of pods whose addresses may have changed owner."""
        for pod, had in pods:
            if (has := self._addresses(pod)) != had and _is_peer(pod):
                scopes = self._index.profile(pod).scopes
                self._count(pod, scopes, had, -1)
                self._count(pod, scopes, has, 1)

    def _count(self, pod: Pod, scopes: Iterable[Watched], addresses: tuple[str, ...], sign: int) -> None:
        for watched in scopes:
            for watcher in watched.watchers:
                watcher.add(self._outputs[watcher.family], watched, pod, addresses, sign)

    def _addresses(self, pod: Pod) -> tuple[str, ...]:
        """The addresses that a pod or a node owns."""
        key = pod.key
        if key[0] == NODES:
            return pod.addresses
        # Called for every pod of the cluster: most namespaces have no endpoint here.
        endpoint = self._endpoints.get(key) if key[0] in self._by_namespace else None
        return self.holders.own(key, claimed(pod, endpoint.local if endpoint else None))

    # --- classes -------------------------------------------------------------------------------------

    def _select(self, key: ObjectKey, endpoint: _Endpoint) -> None:
        """Find the policies that select an endpoint."""
        selecting: list[AnyPolicy] = []
        endpoint.known = self._is_known(endpoint)
        if endpoint.known:
            scopes = (self._by_scope.get(scope, {}) for scope in (endpoint.local.namespace, _CLUSTER))
            selecting = [p for policies in scopes for p in policies.values() if self._selects(p, endpoint)]
        endpoint.selecting = {
            direction: frozenset(policy.ref for policy in selecting if _speaks_of(policy, direction))
            for direction in Direction
        }
        self._choose(key, endpoint, {d: self._class(endpoint, d) for d in Direction})

    def _select_by(self, ref: PolicyRef) -> None:
        """Update the classes of the endpoints that a changed or removed policy selects or has selected."""
        policy = self._by_scope.get(ref.namespace, {}).get(ref)
        concerned = self._by_namespace.get(ref.namespace, {}) if ref.namespace else self._endpoints
        made: dict[frozenset[PolicyRef], PolicyClass | None] = {}
        for key, endpoint in concerned.items():
            if self._is_known(endpoint) is not endpoint.known:
                # Unknown namespaces matter from the first cluster policy to the last.
                self._select(key, endpoint)
            if not endpoint.known:
                continue
            selected = policy is not None and self._selects(policy, endpoint)
            classes: Classes = {}
            for direction, before in endpoint.selecting.items():
                member = selected and policy is not None and _speaks_of(policy, direction)
                if not member and ref not in before:
                    classes[direction] = endpoint.classes[direction]
                    continue
                selecting = before | {ref} if member else before - {ref}
                endpoint.selecting[direction] = selecting
                # Endpoints of one class move together, so that their new class is made once.
                if selecting not in made:
                    made[selecting] = self._class(endpoint, direction)
                classes[direction] = made[selecting]
            self._choose(key, endpoint, classes)

    def _is_known(self, endpoint: _Endpoint) -> bool:
        """Whether an endpoint's policies can be determined.

        A new namespace may arrive after its first pods; without its labels cluster policies cannot be matched.
        """
        if endpoint.labels is None or not endpoint.local.namespace:
            return endpoint.labels is not None
        return _CLUSTER not in self._by_scope or self._index.namespace(endpoint.local.namespace) is not None

    def _selects(self, policy: AnyPolicy, endpoint: _Endpoint) -> bool:
        """Whether a policy of the endpoint's namespace or of the cluster selects a known endpoint."""
        if not endpoint.subject or endpoint.labels is None:
            return False
        if isinstance(policy, NetworkPolicy):
            return matches(policy.selector, endpoint.labels)
        namespace = self._index.namespace(endpoint.local.namespace)
        subject = policy.subject
        return (
            namespace is not None
            and matches(subject.namespaces or EVERYTHING, namespace.labels)
            and matches(subject.pods or EVERYTHING, endpoint.labels)
        )

    def _class(self, endpoint: _Endpoint, direction: Direction) -> PolicyClass | None:
        if not endpoint.known:
            return DENY_ALL
        return PolicyClass.of(self._by_scope[ref.namespace][ref] for ref in endpoint.selecting[direction])

    def _choose(self, key: ObjectKey, endpoint: _Endpoint, classes: Classes) -> None:
        """Move an endpoint into its classes: compile new policies first, discard unused ones last."""
        if classes == endpoint.classes:
            return
        before, after = _policies(endpoint.classes), _policies(classes)
        for ref in after - before:
            compiled = self._compiled.get(ref)
            if compiled is None:
                self._compile(self._by_scope[ref.namespace][ref], {key})
            else:
                compiled.endpoints.add(key)
        self._set_classes(endpoint, classes)
        for ref in before - after:
            compiled = self._compiled[ref]
            compiled.endpoints.discard(key)
            if not compiled.endpoints:
                self._discard(ref)

    def _set_classes(self, endpoint: _Endpoint, classes: Classes) -> None:
        before = endpoint.classes
        endpoint.classes = dict(classes)
        for direction, chosen in classes.items():
            if chosen is not None:
                self._classes.enter(direction, chosen)
        for address in endpoint.local.addresses:
            self._publish(address)
        for direction, chosen in before.items():
            if chosen is not None:
                self._classes.leave(direction, chosen)

    def _publish(self, address: str) -> None:
        """Output an address's class.

        An address that moves between endpoints may be held by both for a moment; the endpoint that leaves must
        not remove the other one's class, whatever the order of events.
        """
        output = self._outputs.get(Family.V6 if ":" in address else Family.V4)
        if output is None:
            return
        holder = self.holders.endpoint(address)
        classes = self._endpoints[holder].classes if holder else _UNRESTRICTED
        for direction, chosen in classes.items():
            chain = None if chosen is None else self._classes.chain(direction, chosen)
            output.set_class(direction, address, chain)

    # --- policies ------------------------------------------------------------------------------------

    def _compile(self, policy: AnyPolicy, endpoints: set[ObjectKey]) -> None:
        """Compile a policy's chains. Sets that it keeps using are not touched."""
        old = self._compiled.get(policy.ref)
        sets: list[PeerSet] = []

        def use(wanted: PeerSet) -> PeerSet:
            sets.append(self._use(wanted))
            return sets[-1]

        for direction in Direction:
            chain = policy_chain(direction, policy.ref)
            for family, output in self._outputs.items():
                if not _speaks_of(policy, direction):
                    output.remove_chain(chain)
                    continue
                compiler = RuleCompiler(family, policy, direction, use)
                rules: Sequence[PolicyRule | ClusterRule] = policy.rules(direction) or ()
                chain_rules = (r for number, rule in enumerate(rules) for r in compiler.compile(number, rule))
                output.set_chain(Chain(chain, tuple(chain_rules)))
        self._compiled[policy.ref] = _Compiled(policy, endpoints, sets)
        self._users = None
        if old is not None:
            self._release(old.sets)

    def _discard(self, ref: PolicyRef) -> None:
        compiled = self._compiled.pop(ref)
        self._users = None
        for direction in Direction:
            for output in self._outputs.values():
                output.remove_chain(policy_chain(direction, ref))
        self._release(compiled.sets)

    def _use(self, wanted: PeerSet) -> PeerSet:
        """Count one more rule that uses a set of this content."""
        held = self._sets.get((wanted.family, wanted.id))
        if held is None:
            held = self._sets[wanted.family, wanted.id] = wanted
            held.open(self._index, self._outputs[held.family], self._addresses)
        held.references += 1
        return held

    def _release(self, sets: Iterable[PeerSet]) -> None:
        for peers in sets:
            peers.references -= 1
            if not peers.references:
                del self._sets[peers.family, peers.id]
                peers.close(self._index, self._outputs[peers.family])


def _peer(node: Node | None) -> Pod | None:
    """A node as a pod in the namespace NODES."""
    return None if node is None else Pod(NODES, node.name, labels=node.labels, addresses=node.addresses)


def _is_peer(pod: Pod) -> bool:
    """Whether a pod can be in a set: a host-network pod has its node's address, a finished one has none."""
    return pod.active and not pod.host_network


def _speaks_of(policy: AnyPolicy, direction: Direction) -> bool:
    """Whether a policy affects a direction: a NetworkPolicy without rules denies all of it."""
    if isinstance(policy, NetworkPolicy):
        return policy.rules(direction) is not None
    return bool(policy.rules(direction))


def _policies(classes: Classes) -> set[PolicyRef]:
    return {ref for chosen in classes.values() if chosen for ref in chosen.policies}
