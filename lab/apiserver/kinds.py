"""What the server knows of a kind: names, versions, and the functions in which kinds differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.apiserver.errors import FieldError

Obj = dict[str, Any]
"""A Kubernetes object (or a part of one) as decoded JSON."""

Schema = dict[str, Any]
"""An OpenAPI v3 schema node; ``$ref`` points into the components of its version."""


@dataclass(frozen=True, slots=True)
class GroupResource:
    """``networkpolicies.networking.k8s.io``: how errors and CRD names spell a resource."""

    group: str
    plural: str

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the Table. ``cell`` gets the object; priority above 0 is shown by ``-o wide`` only."""

    name: str
    cell: Callable[[Obj], object]
    type: str = "string"
    format: str = ""
    description: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """One served version of a resource.

    ``components`` resolves the ``$ref`` of ``schema``. ``builtin``: decoded as the Go types do (an unknown field
    is dropped, null and empty lists vanish), otherwise by the rules of structural schemas. ``to_storage`` and
    ``from_storage`` convert objects (never in place); None is "only apiVersion differs".
    """

    name: str
    schema: Schema
    components: Mapping[str, Schema]
    builtin: bool = True
    columns: Sequence[Column] = ()
    status: bool = False
    served: bool = True
    to_storage: Callable[[Obj], Obj] | None = None
    from_storage: Callable[[Obj], Obj] | None = None


@dataclass(frozen=True, slots=True)
class Strategy:
    """Where kinds differ on a write. All work in place on a private copy and never see ``metadata`` of others.

    ``prepare`` (new, old or None) resets what a client may not set, ``default`` fills in, ``validate`` returns
    the causes of a 422. ``graceful``: deletion waits for a kubelet. ``generation``: metadata.generation counts.
    """

    default: Callable[[Obj], None] | None = None
    prepare: Callable[[Obj, Obj | None], None] | None = None
    validate: Callable[[Obj, Obj | None], list[FieldError]] | None = None
    name_check: Callable[[str], list[str]] | None = None
    generation: bool = True
    graceful: bool = False
    keeps_status_on_create: bool = False
    field_labels: Mapping[str, Callable[[Obj], str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind with its storage. ``versions`` best first; ``storage_version`` is how objects are held."""

    group: str
    plural: str
    singular: str
    kind: str
    namespaced: bool
    versions: Sequence[Version]
    storage_version: str
    strategy: Strategy = Strategy()
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    list_kind: str = ""
    subresources: tuple[str, ...] = ()
    stored_as: GroupResource | None = None

    @property
    def group_resource(self) -> GroupResource:
        return GroupResource(self.group, self.plural)

    @property
    def storage(self) -> GroupResource:
        """Whose objects these are: events.k8s.io serves what core events holds."""
        return self.stored_as or self.group_resource

    def version(self, name: str) -> Version | None:
        """The served version of that name."""
        return next((v for v in self.versions if v.name == name and v.served), None)

    def api_version(self, version: str) -> str:
        """``apiVersion`` of its objects in that version."""
        return f"{self.group}/{version}" if self.group else version

    def convert_in(self, obj: Obj, version: Version) -> Obj:
        """From the form a client sent to the stored form."""
        if version.to_storage is not None:
            return version.to_storage(obj)
        return obj | {"apiVersion": self.api_version(self.storage_version)}

    def convert_out(self, obj: Obj, version: Version) -> Obj:
        """From the stored form to the form a client asked for."""
        if version.from_storage is not None:
            return version.from_storage(obj)
        if version.name == self.storage_version:
            return obj
        return obj | {"apiVersion": self.api_version(version.name)}

    def stored_verbatim(self, version: Version) -> bool:
        """The stored bytes can be served as they are."""
        return version.from_storage is None and version.name == self.storage_version
