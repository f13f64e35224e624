"""Decodes the API's bytes into the agent's records.

An object that cannot be decoded becomes :class:`Unusable`; it never breaks its list or watch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from felix_py.datastore import salvage, wire
from felix_py.datastore.client import error_from_status
from felix_py.datastore.wire import UNDECODABLE
from policy.model import (
    ObjectKey,
)

R = TypeVar("R")
W = TypeVar("W")

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
"""Annotation of the bookmark that ends the initial list of a WatchList (KEP-3157)."""

LONGEST_REASON = 500
"""Characters of a reason, which may quote the object."""


class Gone(Struct, frozen=True):
    """The object of this key was deleted."""

    key: ObjectKey


class Unusable(Struct, frozen=True):
    """An object that exists but cannot be decoded. Without a readable name its key is ("", "")."""

    key: ObjectKey
    uid: str
    reason: str


class Unreadable(Exception):
    """The server sent neither a list nor an event, or an event of an object without a name."""


class Listing(Struct, Generic[R]):
    """One page of a list. ``continue_token`` is empty on the last one."""

    found: list[R | Unusable]
    resource_version: str
    continue_token: str


class WatchEvent(Struct, Generic[R]):
    """One line of a watch. ``what`` None: a bookmark. ``initial_end``: it ends the list of a WatchList."""

    what: R | Gone | Unusable | None
    resource_version: str
    initial_end: bool = False


Salvage = Callable[[wire.Name, "dict[str, bytes]", str], R]
"""Makes a record of an undecodable object from its name, its members' bytes, and the decoder's reason."""


class Kind(Generic[R]):
    """A watched kind and the conversion of its objects to records.

    A list or a line is first decoded as if every object in it were well-formed. If that fails, it is decoded
    object by object, and what the decoder rejects is cut out (:mod:`salvage`).
    """

    def __init__(
        self,
        name: str,
        api_version: str,
        path: str,
        *,
        key: Callable[[R], ObjectKey],
        wire_type: type[W],
        convert: Callable[[W], R],
        salvage: Salvage[R] | None = None,
        optional: bool = False,
        query: Mapping[str, str] | None = None,
    ) -> None:
        """``convert`` and ``salvage`` raise ValueError with the reason why an object cannot be used. ``salvage``
        is for kinds whose objects must not be left out because a part cannot be decoded. ``optional``: a custom
        resource, absent while its CustomResourceDefinition is not installed. ``query``: of every list and watch,
        such as a fieldSelector.
        """
        self.name = name
        self.api_version = api_version
        self.path = path
        self.key = key
        self.optional = optional
        self.query = dict(query or {})
        self._convert: Callable[[Any], R] = convert
        self._salvage = salvage
        self._object = msgspec.json.Decoder(wire_type)
        list_type: Any = wire.ObjectList
        line_type: Any = wire.WatchLine
        self._list: msgspec.json.Decoder[wire.ObjectList[Any]] = msgspec.json.Decoder(list_type[wire_type])
        self._line: msgspec.json.Decoder[wire.WatchLine[Any]] = msgspec.json.Decoder(line_type[wire_type])

    def listing(self, body: bytes) -> Listing[R]:
        """Decode one page of a list; Unreadable if it is not one."""
        try:
            page = self._list.decode(body)
            found = [self._record(item) for item in page.items or ()]
            return Listing(found, page.metadata.resource_version, page.metadata.continue_)
        except UNDECODABLE:
            metadata, items = raw_list(body)
            found = [self.single(item) for item in items]
            return Listing(found, metadata.resource_version, metadata.continue_)

    def single(self, raw: bytes | msgspec.Raw) -> R | Unusable:
        """Decode one object, or as much of it as can be salvaged."""
        try:
            return self._record(self._object.decode(raw))
        except UNDECODABLE as error:
            reason = str(error)
        meta = _name(raw)
        if self._salvage is None:
            return _unusable(meta, reason)
        try:
            return self._salvage(meta, salvage.members(bytes(raw)), reason[:LONGEST_REASON])
        except (ValueError, RecursionError) as error:
            return _unusable(meta, f"{reason}; {error}")

    def change(self, line: bytes) -> WatchEvent[R]:
        """Decode one line of a watch.

        Raises:
            ApiError: the server ended the watch with an ERROR event.
            Unreadable: it is not an event, or its object has no name.
        """
        try:
            event = self._line.decode(line)
        except UNDECODABLE:
            return self._careful_change(line)
        if event.type not in _PRESENT or not event.object.metadata.name:
            return self._careful_change(line)
        return WatchEvent(self._record(event.object), event.object.metadata.resource_version)

    def _careful_change(self, line: bytes) -> WatchEvent[R]:
        what, obj = _raw_event(line)
        match what:
            case "ADDED" | "MODIFIED":
                return WatchEvent(self.single(obj), _name(obj).resource_version)
            case "DELETED":
                meta = _name(obj)
                if not meta.name:
                    raise Unreadable("an object without a readable name was deleted")
                return WatchEvent(Gone((meta.namespace, meta.name)), meta.resource_version)
            case "BOOKMARK":
                try:
                    mark = _BOOKMARK.decode(obj).metadata
                except UNDECODABLE as error:
                    raise Unreadable(f"not a bookmark: {error}") from error
                end = (mark.annotations or {}).get(INITIAL_EVENTS_END) == "true"
                return WatchEvent(None, mark.resource_version, end)
            case "ERROR":
                raise error_from_status(_status(obj), 500)
        raise Unreadable(f"unknown event type {what[:100]!r}")

    def _record(self, decoded: Any) -> R | Unusable:
        try:
            return self._convert(decoded)
        except ValueError as error:
            reason = str(error)
        except MemoryError:  # not the object's fault
            raise
        except Exception as error:
            # A defect in the conversion of one object must not lose the others.
            reason = f"{type(error).__name__}: {error}"
        return _unusable(decoded.metadata, reason)


def raw_list(body: bytes) -> tuple[wire.ListMeta, list[bytes | msgspec.Raw]]:
    """A page of a list: its metadata and each object's bytes; Unreadable if it is not a list."""
    try:
        page = _LIST.decode(body)
        return page.metadata, [*(page.items or ())]
    except UNDECODABLE as error:
        reason = error
    try:
        parts = salvage.members(body)
        items = parts.get("items", b"null")
        return _LIST_META.decode(parts["metadata"]), [*salvage.elements(items)] if items != b"null" else []
    except (KeyError, *UNDECODABLE):
        raise Unreadable(f"not a list: {reason}") from reason


def _raw_event(line: bytes) -> tuple[str, bytes | msgspec.Raw]:
    try:
        event = _LINE.decode(line)
        return event.type, event.object
    except UNDECODABLE as error:
        reason = error
    try:
        parts = salvage.members(line)
        return salvage.text(parts["type"]), parts["object"]
    except (KeyError, ValueError):
        raise Unreadable(f"not a watch event: {reason}") from reason


def _name(raw: bytes | msgspec.Raw) -> wire.Name:
    """The name of an object as far as it is readable; empty fields otherwise."""
    try:
        return _NAMED.decode(raw).metadata
    except UNDECODABLE:
        pass
    try:
        parts = salvage.members(salvage.members(bytes(raw))["metadata"])
    except (KeyError, ValueError):
        return wire.Name("")
    name, namespace, uid, version = (
        salvage.text(parts.get(field, b"")) for field in ("name", "namespace", "uid", "resourceVersion")
    )
    return wire.Name(name, namespace, uid, version)


def _status(raw: bytes | msgspec.Raw) -> wire.Status:
    try:
        return _STATUS.decode(raw)
    except UNDECODABLE:
        return wire.Status(message="an error that cannot be read")


def _unusable(meta: Any, reason: str) -> Unusable:
    key = (meta.namespace, meta.name) if meta.name else ("", "")
    return Unusable(key, meta.uid, reason[:LONGEST_REASON])


_PRESENT = frozenset({"ADDED", "MODIFIED"})
_LIST = msgspec.json.Decoder(wire.ObjectList[msgspec.Raw])
_LIST_META = msgspec.json.Decoder(wire.ListMeta)
_LINE = msgspec.json.Decoder(wire.WatchLine[msgspec.Raw])
_NAMED = msgspec.json.Decoder(wire.Named)
_BOOKMARK = msgspec.json.Decoder(wire.Bookmark)
_STATUS = msgspec.json.Decoder(wire.Status)
