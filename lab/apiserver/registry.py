"""All kinds this server serves now: built in, and those that definitions add and remove."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lab.apiserver.kinds import GroupResource, Resource, Version


class Registry:
    """Lookup by group, version and plural name. ``generation`` changes whenever the set of kinds does."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self._resources = {(resource.group, resource.plural): resource for resource in resources}
        self.generation = 0
        self.on_removed: Callable[[GroupResource], None] = lambda _resource: None
        """Called with a resource that is served no longer."""

    def __iter__(self) -> Iterator[Resource]:
        return iter(list(self._resources.values()))

    def find(self, group: str, version: str, plural: str) -> tuple[Resource, Version] | None:
        """The resource and its served version, or None."""
        resource = self._resources.get((group, plural))
        served = resource.version(version) if resource else None
        return (resource, served) if resource and served else None

    def get(self, group: str, plural: str) -> Resource | None:
        """The resource in any version."""
        return self._resources.get((group, plural))

    def add(self, resource: Resource) -> None:
        """Serve a resource, or serve it anew."""
        self._resources[resource.group, resource.plural] = resource
        self.generation += 1

    def remove(self, group: str, plural: str) -> None:
        """Stop serving a resource."""
        removed = self._resources.pop((group, plural), None)
        if removed is not None:
            self.generation += 1
            self.on_removed(removed.storage)

    def groups(self) -> dict[str, list[str]]:
        """Group -> its served versions, best first; the core group is the empty text."""
        found: dict[str, list[str]] = {}
        for resource in self:
            versions = found.setdefault(resource.group, [])
            versions += [v.name for v in resource.versions if v.served and v.name not in versions]
        return found

    def of_group_version(self, group: str, version: str) -> list[tuple[Resource, Version]]:
        """All resources of one group and version, by plural name."""
        found = [(r, served) for r in self if r.group == group and (served := r.version(version))]
        return sorted(found, key=lambda pair: pair[0].plural)
