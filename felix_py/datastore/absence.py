"""A kind that the server does not have: whether to believe that, and how to learn of its coming.

A kind of a CustomResourceDefinition (CRD) that is not installed answers 404. So does a server that has not read
its definitions yet, and one of several that is behind the others. What the definition itself says decides: it
is an object as others are, read from the same store. Where it cannot be read, the word is believed once it has
stood.

A kind's coming is told by a watch of its definition alone, by name: one quiet connection in place of the one
that the kind itself takes when it is there. Where the right to that is missing, the group's discovery document
is looked at from time to time, once for all kinds of it.
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
"""Seconds for which 404 must have been the only answer, where policy may rest on the kind and nobody else is
asked."""

_CONTRADICTED = 60.0
"""The same where the definition says that the server has the kind."""

_TWICE_APART = 1.0
"""Seconds between two words that count as two."""

_RETRY = (0.25, 5.0)
"""First and longest delay between requests for a kind whose absence is not believed."""


class Word(enum.Enum):
    """What the definition of a kind says."""

    SERVED = enum.auto()
    NOT_SERVED = enum.auto()
    UNKNOWN = enum.auto()
    """It may not be read, or not be understood."""


class Definition:
    """The definition of one kind: how it is asked for, and what an answer says."""

    def __init__(self, kind: Kind[Any]) -> None:
        """``kind.path`` is /apis/GROUP/VERSION/PLURAL, as those of all custom resources."""
        _, _, self.group, self.version, plural = kind.path.split("/")
        self.query = {"fieldSelector": f"metadata.name={plural}.{self.group}"}
        """Selects this definition alone; RBAC takes it for its name (resourceNames)."""

    def listed(self, body: bytes) -> Word:
        """What a list says that was asked for with :attr:`query`."""
        try:
            found = _LIST.decode(body).items or []
        except wire.UNDECODABLE:
            return Word.UNKNOWN
        return self._word(found[0]) if found else Word.NOT_SERVED

    def event(self, line: bytes) -> Word:
        """What a line of a watch says. An ERROR event says nothing: the watch ends with it."""
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
    """Counts one kind's 404s in a row, until they are believed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._retry = Backoff(*_RETRY)
        self.reset()

    def reset(self) -> None:
        """The server said something else: what it says of the kind now counts from the start."""
        self._times = 0
        self._since = 0.0
        self._retry.reset()

    def told(self, word: Word, *, doubt: bool) -> bool:
        """The server has just answered 404, and the definition says ``word``: is the kind not there?

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
        """Seconds until the kind is asked for again, while its absence is not believed."""
        return self._retry.delay()


class Discovery:
    """The discovery document of one API group, looked at once for all of its kinds. Safe for several threads."""

    def __init__(self, api: Api, clock: Clock) -> None:
        self._api = api
        self._clock = clock
        self._lock = threading.Lock()
        self._looked: dict[str, tuple[float, frozenset[str]]] = {}

    def serves(self, group: str, version: str, max_age: float) -> bool:
        """Whether the server has a group's version, as of at most ``max_age`` seconds ago.

        Raises:
            ApiError: it refuses to tell.
            Unreachable: no answer.
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
