"""Writes this node's NodeNetworkStatus (felixpy.io/v1alpha1): on change only, seldom, one write at a time.

The newest status wins: what is offered while a write is under way, or too soon after one, is not kept, since the
next offer says more. Best effort: nothing waits for it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from felix_py import log
from felix_py.backoff import Backoff
from felix_py.datastore import wire
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.clock import Clock, SystemClock

PATH = "/apis/felixpy.io/v1alpha1/nodenetworkstatuses"
API_VERSION = "felixpy.io/v1alpha1"
READY = "Ready"
"""The type of the condition that becomes Unknown when the agent stops."""

DRAINED = "Drained"
"""The type of the condition that becomes True once BGP leads no traffic to the node that can go elsewhere."""

PACE = 10.0
"""Seconds between two writes at least."""

SLOW_PACE = 60.0
"""The same while nothing but counts and messages have changed."""

CHECKED = (1800.0, 3600.0)
"""Seconds, at random, after which the status is sent again unchanged: somebody may have deleted or edited it. The
server stores nothing if it is as it was.
"""

_RETRY = (10.0, 300.0)
_ANSWER = 10.0
_STOP_TIMEOUT = 2.0
_JITTER = 1.2
_MERGE_PATCH = "application/merge-patch+json"

Json = Mapping[str, Any]


class Offer(Struct, frozen=True):
    """A status, and the uid of the Node that it belongs to. Conditions are without ``lastTransitionTime``.

    ``gist``: the part whose changes are written at the quicker pace.
    """

    owner: str
    status: Json
    gist: Any


class StatusWriter:
    """Writes from a thread of its own. ``offer`` never blocks or fails."""

    def __init__(self, api: Api, *, node_name: str, clock: Clock | None = None) -> None:
        self._api = api
        self._node_name = node_name
        self._path = f"{PATH}/{quote(node_name, safe='')}"
        self._clock = clock or SystemClock()
        self._log = log.get("node-status")
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._stop = threading.Event()
        self._newest: Offer | None = None
        self._written: Offer | None = None
        self._written_at = self._not_before = self._check_at = 0.0
        self._backoff = Backoff(*_RETRY)
        self._owner = ""
        self._conditions: dict[str, Json] = {}
        self._failing = ""
        self._thread = threading.Thread(target=self._run, name="node-status", daemon=True)

    def start(self) -> None:
        """Begin to write what is offered."""
        self._thread.start()

    def stop(self) -> None:
        """Write that the agent is stopped, and end. Blocks two seconds at most."""
        with self._lock:
            self._stop.set()
            self._due.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT)

    def offer(self, offer: Offer) -> None:
        """Write this status if that is due; call it every few seconds."""
        now = self._clock.now()
        with self._lock:
            if self._due.is_set() or now < self._not_before or not self._is_due(offer, now):
                return
            self._newest = offer
            self._due.set()

    def _is_due(self, offer: Offer, now: float) -> bool:
        if self._written is None or offer.owner != self._written.owner or offer.gist != self._written.gist:
            return True
        if offer.status != self._written.status:
            return now >= self._written_at + SLOW_PACE
        return now >= self._check_at

    # --- in the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._due.wait() and not self._stop.is_set():
            assert self._newest is not None
            try:
                delay = self._attempt(self._newest)
            except Exception:
                self._log.exception("defect in the writer of the node's status")
                delay = self._backoff.delay()
            with self._lock:
                self._not_before = self._clock.now() + delay
                if not self._stop.is_set():
                    self._due.clear()
        self._say_stopped()

    def _attempt(self, offer: Offer) -> float:
        """Write; returns the seconds until the next write may come."""
        try:
            self._write(offer)
        except (ApiError, Unreachable) as error:
            if isinstance(error, ApiError) and error.status == 404:
                self._owner = ""  # it was deleted, or its definition was
            self._say_failed(error)
            return max(PACE, self._backoff.delay(error.retry_after if isinstance(error, ApiError) else 0.0))
        self._backoff.reset()
        self._failing = ""
        self._written, self._written_at = offer, self._clock.now()
        self._check_at = self._written_at + random.uniform(*CHECKED)
        return PACE * random.uniform(1.0, _JITTER)

    def _say_failed(self, error: ApiError | Unreachable) -> None:
        """Log the first of failures of one sort."""
        absent = isinstance(error, ApiError) and error.status == 404
        sort = str(error.status) if isinstance(error, ApiError) else "unreachable"
        if sort != self._failing:
            (self._log.info if absent else self._log.warning)("cannot write the node's status", reason=str(error))
        self._failing = sort

    def _write(self, offer: Offer) -> None:
        if self._owner != offer.owner:
            self._adopt(offer.owner)
        conditions = self._timed(offer.status["conditions"])
        self._send("PATCH", f"{self._path}/status", {"status": {**offer.status, "conditions": conditions}})
        self._conditions = {one["type"]: one for one in conditions}

    def _adopt(self, owner: str) -> None:
        """Have the object, owned by the Node of this uid, so that it goes when the Node goes.

        The answer tells the conditions from before a restart, and since when they are so.
        """
        reference = {"apiVersion": "v1", "kind": "Node", "name": self._node_name, "uid": owner}
        metadata = {"ownerReferences": [reference]}
        try:
            found = self._send("PATCH", self._path, {"metadata": metadata})
        except ApiError as error:
            if error.status != 404:
                raise
            head = {"apiVersion": API_VERSION, "kind": "NodeNetworkStatus"}
            found = self._send("POST", PATH, {**head, "metadata": {"name": self._node_name, **metadata}})
        self._owner = owner
        self._conditions = _conditions(found)

    def _timed(self, conditions: Sequence[Json]) -> list[Json]:
        """Conditions with ``lastTransitionTime``: now, unless the status is the one before."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        timed: list[Json] = []
        for one in conditions:
            before = self._conditions.get(one["type"], {})
            since = before.get("lastTransitionTime") if before.get("status") == one["status"] else None
            timed.append({**one, "lastTransitionTime": since or now})
        return timed

    def _say_stopped(self) -> None:
        """One try, so that nobody takes the last status for the present one."""
        if self._written is None:
            return
        stopped = {
            "type": READY,
            "status": "Unknown",
            "reason": "AgentStopped",
            "message": "the agent was stopped; what it wrote to the kernel stays in force",
        }
        conditions = [stopped if one["type"] == READY else one for one in self._written.status["conditions"]]
        body = {"status": {"conditions": self._timed(conditions)}}
        try:
            self._send("PATCH", f"{self._path}/status", body, patience=_STOP_TIMEOUT)
        except (ApiError, Unreachable) as error:
            self._log.info("cannot write that the agent is stopped", reason=str(error))

    def _send(self, method: str, path: str, body: Json, patience: float = _ANSWER) -> bytes:
        content_type = _MERGE_PATCH if method == "PATCH" else "application/json"
        raw = msgspec.json.encode(body)
        with self._api.request(
            method, path, body=raw, content_type=content_type, read_timeout=patience
        ) as answer:
            return answer.read()


def _conditions(body: bytes) -> dict[str, Json]:
    """The conditions of an object by type; none if it cannot be decoded."""
    try:
        status = msgspec.json.decode(body, type=wire.Judged).status
    except wire.UNDECODABLE:
        return {}
    return {str(one.get("type")): one for one in (status.conditions if status else None) or ()}
