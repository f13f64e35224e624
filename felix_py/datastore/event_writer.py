"""Kubernetes Events on objects: ``kubectl describe`` shows how the agent judges an object.

Best effort: nothing waits for it, memory and rate are bounded, and Events are lost while the API server is away.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from felix_py import log
from felix_py.backoff import TokenBucket
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.clock import Clock, SystemClock

COMPONENT = "felix-py"

REPEAT_AFTER = 600.0
"""Seconds after which a recurring Event is written again with a higher count."""

_BURST = 20
_PER_SECOND = 0.5
_QUEUED = 256
_REMEMBERED = 1024
_LONGEST_MESSAGE = 1024
_STOP_TIMEOUT = 2.0


class ObjectRef(Struct, frozen=True):
    """core/v1 ObjectReference: the object of an Event. ``namespace`` is empty for cluster-scoped objects."""

    kind: str
    api_version: str
    namespace: str
    name: str
    uid: str = ""


class _Occurrence(Struct, frozen=True):
    ref: ObjectRef
    type: str
    reason: str
    message: str

    @property
    def name(self) -> str:
        """The Event's name, a function of its content: a thousand agents that report the same write one Event."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:16]
        return f"{self.ref.name[:200].rstrip('-.')}.{digest}"

    @property
    def namespace(self) -> str:
        """Events of cluster-scoped objects live in ``default``."""
        return self.ref.namespace or "default"

    @property
    def collection(self) -> str:
        """The API path of its namespace's Events."""
        return f"/api/v1/namespaces/{quote(self.namespace, safe='')}/events"


class _Written(Struct):
    """An Event that was written: occurrences so far, and the time of the last write."""

    count: int
    at: float


class EventWriter:
    """Writes Events from a thread of its own. ``warning`` and ``normal`` never block or fail."""

    def __init__(self, api: Api, *, node_name: str, clock: Clock | None = None) -> None:
        self._api = api
        self._node_name = node_name
        self._clock = clock or SystemClock()
        self._log = log.get("events")
        self._queue: queue.Queue[_Occurrence | None] = queue.Queue(_QUEUED)
        self._stop = threading.Event()
        self._written: OrderedDict[str, _Written] = OrderedDict()
        self._allowed = TokenBucket(_PER_SECOND, _BURST, self._clock.now)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begin to write queued Events."""
        self._thread.start()

    def stop(self) -> None:
        """End; queued Events are dropped. Blocks for a request under way, two seconds at most."""
        self._stop.set()
        with contextlib.suppress(queue.Full):  # the thread checks the flag after each Event
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT)

    def warning(self, ref: ObjectRef, reason: str, message: str) -> None:
        """Queue a Warning on an object. ``reason``: one CamelCase word; ``message``: text for people."""
        self._post(_Occurrence(ref, "Warning", reason, _shortened(message)))

    def normal(self, ref: ObjectRef, reason: str, message: str) -> None:
        """Queue a Normal Event on an object."""
        self._post(_Occurrence(ref, "Normal", reason, _shortened(message)))

    def _post(self, occurrence: _Occurrence) -> None:
        try:
            self._queue.put_nowait(occurrence)
        except queue.Full:
            name = occurrence.ref.name
            self._log.warning("too many Events, one dropped", reason=occurrence.reason, object=name)

    # --- in the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            occurrence = self._queue.get()
            if occurrence is None or self._stop.is_set():
                return
            try:
                self._write(occurrence)
            except (ApiError, Unreachable) as error:
                shown = f"{occurrence.ref.kind} {occurrence.ref.namespace}/{occurrence.ref.name}"
                about = {"reason": occurrence.reason, "object": shown, "message": occurrence.message}
                self._log.warning("cannot write an Event", **about, error=str(error))
            except Exception:
                self._log.exception("defect in the Event writer")

    def _write(self, occurrence: _Occurrence) -> None:
        name, now = occurrence.name, self._clock.now()
        written = self._written.get(name)
        if written is not None:
            written.count += 1
            if now - written.at < REPEAT_AFTER:
                return
        if not self._await_token():
            return
        if written is None or not self._raise_count(occurrence, written):
            self._create(occurrence)
            written = _Written(1, now)
        written.at = now
        self._written[name] = written
        self._written.move_to_end(name)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)

    def _await_token(self) -> bool:
        """Wait for the rate limit; false if stopped meanwhile."""
        while not self._allowed.take():
            if self._clock.wait(self._allowed.wait(), self._stop):
                return False
        return True

    def _create(self, occurrence: _Occurrence) -> None:
        try:
            self._send("POST", occurrence.collection, self._body(occurrence))
        except ApiError as error:
            if error.status != 409:  # Conflict: another agent, or this one before a restart, wrote the same
                raise

    def _raise_count(self, occurrence: _Occurrence, written: _Written) -> bool:
        """Raise the Event's count; false if the Event has expired."""
        path = f"{occurrence.collection}/{quote(occurrence.name, safe='')}"
        body = {"count": written.count, "lastTimestamp": _timestamp()}
        try:
            self._send("PATCH", path, body, "application/merge-patch+json")
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def _send(self, method: str, path: str, body: dict[str, Any], content_type: str = "application/json") -> None:
        with self._api.request(method, path, body=msgspec.json.encode(body), content_type=content_type) as answer:
            answer.read()

    def _body(self, occurrence: _Occurrence) -> dict[str, Any]:
        """core/v1 Event."""
        ref, now = occurrence.ref, _timestamp()
        involved = {
            "kind": ref.kind,
            "apiVersion": ref.api_version,
            "namespace": ref.namespace,
            "name": ref.name,
            "uid": ref.uid,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": occurrence.name, "namespace": occurrence.namespace},
            "involvedObject": {key: value for key, value in involved.items() if value},
            "type": occurrence.type,
            "reason": occurrence.reason,
            "message": occurrence.message,
            "source": {"component": COMPONENT, "host": self._node_name},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node_name,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _shortened(message: str) -> str:
    """The API refuses messages above 1,024 bytes."""
    encoded = message.encode()
    if len(encoded) <= _LONGEST_MESSAGE:
        return message
    return encoded[: _LONGEST_MESSAGE - 4].decode(errors="ignore") + " …"


def _timestamp() -> str:
    """Now, as meta/v1 Time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
