"""Absent kinds: when a 404 is believed, and how the installation of a CustomResourceDefinition (CRD) is noticed.

A custom resource whose CRD is not installed answers 404. So does a server that has not read its CRDs yet, and a
replica that lags behind the others. The CRD decides: it is an object like any other, read from the same store.
If it cannot be read, the 404 is believed after it has persisted for some time.

Installation is noticed by a watch of the one CRD, by name: one idle connection in place of the one that the kind
takes once it is served. Without the RBAC right to that, the group's discovery document is polled, once for all
kinds of the group.
"""

from __future__ import annotations

import enum
import threading
from typing import Any

import msgspec

from felix_py.backoff import Backoff
from felix_py.datastore import wire
from felix_py.datastore.client import Api, ApiError
from felix_py.datastore.clock import Clock
from felix_py.datastore.decode import Kind

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

_STOOD = 30.0
"""Seconds of nothing but 404 before it is believed, if policies may be in force and the CRD is unreadable."""

_CONTRADICTED = 60.0
"""The same if the CRD says that the kind is served."""

_TWICE_APART = 1.0
"""Seconds between two 404s that count as two."""

_RETRY = (0.25, 5.0)
"""First and longest delay between requests for a kind whose absence is not believed."""


class Word(enum.Enum):
    """What a CRD says about its kind. UNKNOWN: it may not be read, or cannot be decoded."""

    SERVED = enum.auto()
    NOT_SERVED = enum.auto()
    UNKNOWN = enum.auto()


class Definition:
    """The CRD of one kind: its query, and the decoding of answers."""

    def __init__(self, kind: Kind[Any]) -> None:
        """``kind.path`` is /apis/GROUP/VERSION/PLURAL, as of every custom resource."""
        _, _, self.group, self.version, plural = kind.path.split("/")
        self.query = {"fieldSelector": f"metadata.name={plural}.{self.group}"}
        """Selects this CRD alone; RBAC treats the selector as its name (resourceNames)."""

    def listed(self, body: bytes) -> tuple[Word, str]:
        """Decode a list that was requested with :attr:`query`; also its resourceVersion, to watch from."""
        try:
            found = _LIST.decode(body)
        except wire.UNDECODABLE:
            return Word.UNKNOWN, ""
        word = self._word(found.items[0]) if found.items else Word.NOT_SERVED
        return word, found.metadata.resource_version

    def event(self, line: bytes) -> Word:
        """Decode a line of a watch. An ERROR event is UNKNOWN: the watch ends with it."""
        try:
            event = _LINE.decode(line)
            if event.type not in ("ADDED", "MODIFIED"):
                return Word.UNKNOWN if event.type == "ERROR" else Word.NOT_SERVED
            return self._word(_DEFINITION.decode(event.object))
        except wire.UNDECODABLE:
            return Word.UNKNOWN

    def _word(self, found: wire.Definition) -> Word:
        conditions = found.status.conditions or ()
        established = any(one.type == "Established" and one.status == "True" for one in conditions)
        served = any(one.name == self.version and one.served for one in found.spec.versions or ())
        return Word.SERVED if established and served else Word.NOT_SERVED


class Belief:
    """Counts consecutive 404s of one kind until the absence is believed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._retry = Backoff(*_RETRY)
        self.reset()

    def reset(self) -> None:
        """Start counting anew, after another answer than 404."""
        self._times = 0
        self._since = 0.0
        self._retry.reset()

    def told(self, word: Word, *, doubt: bool) -> bool:
        """Count a 404; true if the kind is absent, given its CRD's ``word``.

        ``doubt``: policies of this kind are in force, or may be.
        """
        now = self._clock.now()
        self._times += 1
        self._since = self._since or now
        stood = now - self._since
        if word is Word.SERVED:
            return stood >= _CONTRADICTED
        if not doubt:
            return word is Word.NOT_SERVED or self._times > 1
        return self._times > 1 and stood >= (_TWICE_APART if word is Word.NOT_SERVED else _STOOD)

    def delay(self) -> float:
        """Seconds until the next request while the absence is not believed."""
        return self._retry.delay()


class Discovery:
    """Discovery documents of API groups, fetched once for all kinds of a group. Thread-safe."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._looked: dict[str, tuple[float, frozenset[str]]] = {}

    def serves(self, group: str, version: str, max_age: float) -> bool:
        """Whether the server has a group's version, as of at most ``max_age`` seconds ago.

        Raises:
            ApiError, Unreachable: as :meth:`Api.request`.
        """
        with self._lock:
            looked, versions = self._looked.get(group, (0.0, frozenset[str]()))
            if not looked or self._clock.now() - looked > max_age:
                versions = self._look(group)
                self._looked[group] = self._clock.now(), versions
            return version in versions

    def _look(self, group: str) -> frozenset[str]:
        try:
            with self._api.request("GET", f"/apis/{group}") as answer:
                found = _GROUP.decode(answer.read())
        except ApiError as error:
            if error.status == 404:
                return frozenset()
            raise
        except wire.UNDECODABLE:
            return frozenset()
        return frozenset(one.version for one in found.versions or ())


_LIST = msgspec.json.Decoder(wire.ObjectList[wire.Definition])
_LINE = msgspec.json.Decoder(wire.WatchLine[msgspec.Raw])
_DEFINITION = msgspec.json.Decoder(wire.Definition)
_GROUP = msgspec.json.Decoder(wire.APIGroup)
