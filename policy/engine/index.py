"""The pods of peer selectors, kept up to date at a cost proportional to the change.

Pods with the same namespace and labels share a *profile*; selectors are evaluated once for a profile, never for a
pod. Only watched selectors are tracked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from policy.engine.output import Output
from policy.model import Family, Labels, Namespace, ObjectKey, Operator, Pod, Selector
from policy.selectors import EVERYTHING, matches

_K = TypeVar("_K")
_V = TypeVar("_V")

_Anchor = tuple[str, str, str]
"""(namespace or "", label key or "", label value), which a profile must have to be in the scope."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A selection of pods: of one namespace, of the namespaces with certain labels, or of all (both None)."""

    namespace: str | None
    namespaces: Selector | None
    pods: Selector = EVERYTHING

    def text(self) -> str:
        """Canonical text, equal for equal scopes only."""
        return repr((self.namespace, self.namespaces, self.pods))


ALL_PODS = Scope(None, None)

NODES = "/nodes"
"""The namespace of nodes among the pods; no pod can be in it, and no namespace selector selects it."""


class Watched:
    """A watched scope. Compared by identity, which makes events cheap."""

    __slots__ = ("profiles", "scope", "watchers")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.profiles: dict[Profile, None] = {}
        self.watchers: dict[Watcher, None] = {}

    def pods(self) -> Iterator[Pod]:
        """Every pod in the scope."""
        for profile in self.profiles:
            yield from profile.pods.values()


class Watcher(Protocol):
    """A follower of scopes (an IP set). Hashed by identity."""

    @property
    def family(self) -> Family: ...

    def add(self, output: Output, watched: Watched, pod: Pod, addresses: tuple[str, ...], sign: int) -> None: ...

    def __hash__(self) -> int: ...


class Profile:
    """All pods of one namespace with the same labels, and the watched scopes that they are in."""

    __slots__ = ("labels", "namespace", "pods", "scopes")

    def __init__(self, namespace: str, labels: Labels) -> None:
        self.namespace, self.labels = namespace, labels
        self.pods: dict[ObjectKey, Pod] = {}
        self.scopes: dict[Watched, None] = {}


class _ByLabel(Generic[_K]):
    """Objects by their labels. Most label keys are never used, so the index of one is made at its first use."""

    def __init__(self, everything: Callable[[], Iterable[tuple[_K, Labels]]]) -> None:
        self._everything = everything
        self._found: dict[str, dict[str, dict[_K, None]]] = {}

    def add(self, thing: _K, labels: Labels) -> None:
        """Add an object with its labels."""
        for key, value in labels:
            if key in self._found:
                self._found[key].setdefault(value, {})[thing] = None

    def remove(self, thing: _K, labels: Labels) -> None:
        """Remove an object with its labels."""
        for key, value in labels:
            if key in self._found:
                _drop(self._found[key], value, thing)

    def possible(self, selector: Selector) -> Collection[_K] | None:
        """The smallest superset of the selector's matches that an index has; None: no index applies."""
        found = [
            self._of(requirement.key).get(requirement.values[0], {})
            for requirement in selector.requirements
            if requirement.operator is Operator.IN and len(requirement.values) == 1
        ]
        return min(found, key=len) if found else None

    def _of(self, key: str) -> dict[str, dict[_K, None]]:
        if key not in self._found:
            self._found[key] = {}
            for thing, labels in self._everything():
                self.add(thing, tuple(pair for pair in labels if pair[0] == key))
        return self._found[key]


class PodIndex:
    """Pods by profile, profiles by scope."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Namespace] = {}
        self._profiles: dict[str, dict[Labels, Profile]] = {}
        self._labelled = _ByLabel(lambda: ((profile, profile.labels) for profile in self._all()))
        self._labelled_namespaces = _ByLabel(lambda: ((n.name, n.labels) for n in self._namespaces.values()))
        self._watched: dict[Scope, Watched] = {}
        self._anchors: dict[_Anchor, dict[Watched, None]] = {}

    # --- pods ----------------------------------------------------------------------------------------

    def add(self, key: ObjectKey, pod: Pod) -> Profile:
        """Add or replace a pod under its profile; returns the profile."""
        neighbours = self._profiles.setdefault(pod.namespace, {})
        profile = neighbours.get(pod.labels)
        if profile is None:
            profile = neighbours[pod.labels] = Profile(pod.namespace, pod.labels)
            self._labelled.add(profile, pod.labels)
            self._match(profile, self._candidates(profile))
        profile.pods[key] = pod
        return profile

    def remove(self, key: ObjectKey, profile: Profile) -> None:
        """Remove a pod from its profile; the last one removes the profile."""
        del profile.pods[key]
        if not profile.pods:
            neighbours = self._profiles[profile.namespace]
            del neighbours[profile.labels]
            if not neighbours:
                del self._profiles[profile.namespace]
            self._labelled.remove(profile, profile.labels)
            for watched in profile.scopes:
                del watched.profiles[profile]

    def profile(self, pod: Pod) -> Profile:
        """The profile of a pod in the index."""
        return self._profiles[pod.namespace][pod.labels]

    # --- namespaces ----------------------------------------------------------------------------------

    def set_namespace(
        self, name: str, namespace: Namespace | None
    ) -> Iterator[tuple[Profile, list[Watched], list[Watched]]]:
        """Replace a namespace's labels; yields each profile with the scopes that it left and joined."""
        before = self._namespaces.pop(name, None)
        if before is not None:
            self._labelled_namespaces.remove(name, before.labels)
        if namespace is not None:
            self._namespaces[name] = namespace
            self._labelled_namespaces.add(name, namespace.labels)
        for profile in list(self._profiles.get(name, {}).values()):
            left = [watched for watched in profile.scopes if not self._means(watched.scope, profile)]
            for watched in left:
                del profile.scopes[watched], watched.profiles[profile]
            held = set(profile.scopes)
            self._match(profile, self._candidates(profile))
            yield profile, left, [watched for watched in profile.scopes if watched not in held]

    def namespace(self, name: str) -> Namespace | None:
        """Returns a namespace, or None if it is unknown."""
        return self._namespaces.get(name)

    # --- scopes --------------------------------------------------------------------------------------

    def watch(self, scope: Scope, watcher: Watcher) -> Watched:
        """Add a watcher to a scope."""
        watched = self._watched.get(scope)
        if watched is None:
            watched = self._watched[scope] = Watched(scope)
            self._anchors.setdefault(_anchor(scope), {})[watched] = None
            for profile in self._possible(scope):
                self._match(profile, (watched,))
        watched.watchers[watcher] = None
        return watched

    def unwatch(self, watched: Watched, watcher: Watcher) -> None:
        """Remove a watcher from a scope; the last one removes the scope from the index."""
        watched.watchers.pop(watcher, None)
        if not watched.watchers:
            for profile in watched.profiles:
                del profile.scopes[watched]
            del self._watched[watched.scope]
            _drop(self._anchors, _anchor(watched.scope), watched)

    def _possible(self, scope: Scope) -> Iterable[Profile]:
        """A superset of the scope's profiles, the smallest one that an index has."""
        if scope.namespace is not None:
            return self._profiles.get(scope.namespace, {}).values()
        by_pods = self._labelled.possible(scope.pods)
        if scope.namespaces is not None:
            names = self._labelled_namespaces.possible(scope.namespaces)
            names = self._namespaces if names is None else names
            if by_pods is None or len(by_pods) > len(names):
                return self._in_namespaces(scope.namespaces, names)
        return self._all() if by_pods is None else by_pods

    def _in_namespaces(self, selector: Selector, names: Iterable[str]) -> Iterator[Profile]:
        for name in names:
            if matches(selector, self._namespaces[name].labels):
                yield from self._profiles.get(name, {}).values()

    def _all(self) -> Iterator[Profile]:
        return (profile for neighbours in self._profiles.values() for profile in neighbours.values())

    def _candidates(self, profile: Profile) -> Iterator[Watched]:
        """A superset of the watched scopes that the profile is in."""
        for namespace in (profile.namespace, ""):
            yield from self._anchors.get((namespace, "", ""), ())
            for key, value in profile.labels:
                yield from self._anchors.get((namespace, key, value), ())

    def _match(self, profile: Profile, candidates: Iterable[Watched]) -> None:
        for watched in candidates:
            if self._means(watched.scope, profile):
                profile.scopes[watched] = None
                watched.profiles[profile] = None

    def _means(self, scope: Scope, profile: Profile) -> bool:
        if scope.namespace is not None:
            if profile.namespace != scope.namespace:
                return False
        elif scope.namespaces is not None:
            namespace = self._namespaces.get(profile.namespace)
            if namespace is None or not matches(scope.namespaces, namespace.labels):
                return False
        return matches(scope.pods, profile.labels)


def _anchor(scope: Scope) -> _Anchor:
    for requirement in scope.pods.requirements:
        if requirement.operator is Operator.IN and len(requirement.values) == 1:
            return (scope.namespace or "", requirement.key, requirement.values[0])
    return (scope.namespace or "", "", "")


def _drop(index: dict[_K, dict[_V, None]], key: _K, value: _V) -> None:
    """Remove a value from a multi-map, and the key with its last value."""
    values = index[key]
    values.pop(value, None)
    if not values:
        del index[key]
