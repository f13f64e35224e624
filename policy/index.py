"""Which pods does a peer selector mean, kept up to date at a cost that follows the change.

Pods with the same namespace and labels share a *profile*; selectors are evaluated once for a profile, never for a
pod. Only selectors that somebody asked for are tracked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from policy.model import Family, Labels, Namespace, ObjectKey, Operator, Pod, Selector
from policy.output import Output
from policy.selectors import EVERYTHING, matches

_K = TypeVar("_K")
_V = TypeVar("_V")

_Anchor = tuple[str, str, str]
"""(namespace or "", label key or "", label value): a profile must have it for the scope to be worth a look."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A choice of pods: those of one namespace, of the namespaces with certain labels, or all (both None)."""

    namespace: str | None
    namespaces: Selector | None
    pods: Selector = EVERYTHING

    def text(self) -> str:
        """Canonical text: equal scopes and no others have the same."""
        return repr((self.namespace, self.namespaces, self.pods))


ALL_PODS = Scope(None, None)

NODES = "/nodes"
"""Where nodes stand among the pods: a namespace that no pod can be in, and that no namespace selector means."""


class Watched:
    """A scope that somebody asked for. Compared by identity, which is what makes an event cheap."""

    __slots__ = ("profiles", "scope", "watchers")

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.profiles: dict[Profile, None] = {}
        self.watchers: dict[Watcher, None] = {}

    def pods(self) -> Iterator[Pod]:
        """Every pod that the scope means."""
        for profile in self.profiles:
            yield from profile.pods.values()


class Watcher(Protocol):
    """Somebody who follows scopes (an IP set). Hashed by identity."""

    @property
    def family(self) -> Family: ...

    def add(self, output: Output, watched: Watched, pod: Pod, addresses: tuple[str, ...], sign: int) -> None: ...

    def __hash__(self) -> int: ...


class Profile:
    """All pods of one namespace that have the same labels, and the watched scopes that mean them."""

    __slots__ = ("labels", "namespace", "pods", "scopes")

    def __init__(self, namespace: str, labels: Labels) -> None:
        self.namespace = namespace
        self.labels = labels
        self.pods: dict[ObjectKey, Pod] = {}
        self.scopes: dict[Watched, None] = {}


class PodIndex:
    """Pods by profile, profiles by scope."""

    def __init__(self) -> None:
        self._namespaces: dict[str, Namespace] = {}
        self._profiles: dict[tuple[str, Labels], Profile] = {}
        self._by_namespace: dict[str, dict[Profile, None]] = {}
        self._by_label: dict[tuple[str, str], dict[Profile, None]] = {}
        self._watched: dict[Scope, Watched] = {}
        self._anchors: dict[_Anchor, dict[Watched, None]] = {}

    # --- pods ----------------------------------------------------------------------------------------

    def add(self, key: ObjectKey, pod: Pod) -> Profile:
        """Put a pod under its profile, or in the place of what it was there; returns the profile."""
        identity = (pod.namespace, pod.labels)
        profile = self._profiles.get(identity)
        if profile is None:
            profile = self._profiles[identity] = Profile(pod.namespace, pod.labels)
            self._by_namespace.setdefault(pod.namespace, {})[profile] = None
            for pair in pod.labels:
                self._by_label.setdefault(pair, {})[profile] = None
            self._match(profile, self._candidates(profile))
        profile.pods[key] = pod
        return profile

    def remove(self, key: ObjectKey, profile: Profile) -> None:
        """Take a pod out of its profile; the last one takes the profile with it."""
        del profile.pods[key]
        if not profile.pods:
            del self._profiles[profile.namespace, profile.labels]
            _drop(self._by_namespace, profile.namespace, profile)
            for pair in profile.labels:
                _drop(self._by_label, pair, profile)
            for watched in profile.scopes:
                del watched.profiles[profile]

    def profile(self, pod: Pod) -> Profile:
        """The profile of a pod that was added."""
        return self._profiles[pod.namespace, pod.labels]

    # --- namespaces ----------------------------------------------------------------------------------

    def set_namespace(
        self, name: str, namespace: Namespace | None
    ) -> Iterator[tuple[Profile, list[Watched], list[Watched]]]:
        """Take over a namespace's labels; yields each profile with the scopes that it left and joined."""
        if namespace is None:
            self._namespaces.pop(name, None)
        else:
            self._namespaces[name] = namespace
        for profile in list(self._by_namespace.get(name, ())):
            left = [watched for watched in profile.scopes if not self._means(watched.scope, profile)]
            for watched in left:
                del profile.scopes[watched], watched.profiles[profile]
            held = set(profile.scopes)
            self._match(profile, self._candidates(profile))
            yield profile, left, [watched for watched in profile.scopes if watched not in held]

    def namespace(self, name: str) -> Namespace | None:
        """A namespace that is known."""
        return self._namespaces.get(name)

    # --- scopes --------------------------------------------------------------------------------------

    def watch(self, scope: Scope, watcher: Watcher) -> Watched:
        """Follow a scope for somebody, from now on."""
        watched = self._watched.get(scope)
        if watched is None:
            watched = self._watched[scope] = Watched(scope)
            self._anchors.setdefault(_anchor(scope), {})[watched] = None
            for profile in self._possible(scope):
                self._match(profile, (watched,))
        watched.watchers[watcher] = None
        return watched

    def unwatch(self, watched: Watched, watcher: Watcher) -> None:
        """The last one who stops following a scope takes it out of the index."""
        watched.watchers.pop(watcher, None)
        if not watched.watchers:
            for profile in watched.profiles:
                del profile.scopes[watched]
            del self._watched[watched.scope]
            _drop(self._anchors, _anchor(watched.scope), watched)

    def _possible(self, scope: Scope) -> Iterable[Profile]:
        """Profiles that the scope may mean: as few as can be found without looking at each."""
        namespace, key, value = _anchor(scope)
        if namespace:
            return self._by_namespace.get(namespace, ())
        if key:
            return self._by_label.get((key, value), ())
        return self._profiles.values()

    def _candidates(self, profile: Profile) -> Iterator[Watched]:
        """Scopes that may mean the profile."""
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
