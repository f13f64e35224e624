"""The status condition of cluster-scoped policies: whether they are applied as written.

Every agent derives the condition from the object alone, so a thousand agents agree on it. Each waits for a random
time, reads the object, and writes only if the condition is still missing. A write carries the resourceVersion
read, so that it never undoes another's.

Best effort, as Events are: nothing waits for it; memory and rate are bounded.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from felix_py import log
from felix_py.datastore import wire
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.clock import Clock, SystemClock
from felix_py.datastore.decode import Kind, Unreadable, raw_list
from felix_py.datastore.kinds import CLUSTER_POLICY_KINDS
from felix_py.datastore.wire import UNDECODABLE
from policy.model import ClusterPolicy

ACCEPTED = "felixpy.io/Accepted"
"""Type of the condition (meta/v1 Condition): False while a part of the policy is not applied as written."""

AS_WRITTEN = "AppliedAsWritten"
NOT_AS_WRITTEN = "NotAppliedAsWritten"
"""The condition's reasons."""

_TRIES = 5
_QUEUED = 1024
_PER_SECOND = 10.0
_LONGEST_MESSAGE = 4096
_PAGE = 500
_STOP_TIMEOUT = 2.0
_WORTH_A_TRY = frozenset({409, 429, 500, 502, 503, 504})
"""Refusals after which a repetition may succeed: a conflicting write, or an overloaded server."""

LOOK = (0.5, 10.0)
"""Least and greatest random delay, in seconds, before a policy is read."""

Place = tuple[str, str]
"""(kind, name)."""

_ALL: Place = ("", "")
"""All policies of all kinds."""


class ConditionWriter:
    """Writes conditions from a thread of its own. ``review`` never blocks or fails."""

    def __init__(self, api: Api, *, clock: Clock | None = None) -> None:
        self._api = api
        self._clock = clock or SystemClock()
        self._log = log.get("conditions")
        self._kinds = {kind.name: kind for kind in CLUSTER_POLICY_KINDS}
        self._queue: queue.Queue[Place | None] = queue.Queue(_QUEUED)
        self._tries: dict[Place, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="conditions", daemon=True)

    def start(self) -> None:
        """Begin with a review of all policies: one may have been corrected while no agent ran."""
        self._put(_ALL)
        self._thread.start()

    def stop(self) -> None:
        """End; queued reviews are dropped. Blocks for a request under way, two seconds at most."""
        self._stop.set()
        with contextlib.suppress(queue.Full):  # the thread checks the flag after each policy
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT)

    def review(self, kind: str, name: str) -> None:
        """Queue a policy whose problems have changed."""
        self._put((kind, name))

    def _put(self, place: Place) -> None:
        try:
            self._queue.put_nowait(place)
        except queue.Full:
            self._log.warning("too many policies to look at, one left out", kind=place[0], object=place[1])

    # --- in the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            place = self._queue.get()
            if place is None or self._clock.wait(random.uniform(*LOOK), self._stop):
                return
            for waiting in self._drain(place):
                if self._stop.is_set():
                    return
                self._attempt(waiting)

    def _drain(self, first: Place) -> list[Place]:
        """Everything queued, each place once: a burst of changes to one policy is one review."""
        found = {first}
        with contextlib.suppress(queue.Empty):
            while True:
                place = self._queue.get_nowait()
                found.add(place or first)
        return [_ALL] if _ALL in found else sorted(found)

    def _attempt(self, place: Place) -> None:
        """Review one policy, or all; queue it again after a transient failure."""
        tries = self._tries.pop(place, 0) + 1
        try:
            if place == _ALL:
                for kind in CLUSTER_POLICY_KINDS:
                    self._find_wrong(kind)
            else:
                self._review(self._kinds[place[0]], place[1])
        except ApiError as error:
            self._failed(place, tries, error, again=error.status in _WORTH_A_TRY)
        except (Unreachable, Unreadable, *UNDECODABLE) as error:
            self._failed(place, tries, error, again=True)
        except Exception:
            self._log.exception("defect in the condition writer")
        self._clock.wait(1 / _PER_SECOND, self._stop)

    def _failed(self, place: Place, tries: int, error: Exception, *, again: bool) -> None:
        """Log the first of consecutive failures, and queue a repetition. The review of all is never given up."""
        if isinstance(error, ApiError) and error.status == 404:
            return  # the policy is gone, or its definition
        if tries == 1:
            self._log.warning("cannot set a condition", policy=" ".join(place).strip() or "any", error=str(error))
        if again and (tries < _TRIES or place == _ALL):
            self._tries[place] = tries
            self._put(place)

    def _find_wrong(self, kind: Kind[ClusterPolicy]) -> None:
        """Queue all policies of a kind whose condition is wrong."""
        query = {"limit": str(_PAGE)}
        while not self._stop.is_set():
            try:
                with self._api.request("GET", kind.path, query) as answer:
                    page, items = raw_list(answer.read())
            except ApiError as error:
                if error.status == 404:
                    return  # this kind is not installed
                raise
            for raw in items:
                policy = kind.single(raw)
                if isinstance(policy, ClusterPolicy) and _is_wrong(policy, raw):
                    self.review(kind.name, policy.name)
            if not page.continue_:
                return
            query = {"limit": str(_PAGE), "continue": page.continue_}

    def _review(self, kind: Kind[ClusterPolicy], name: str) -> None:
        """Read one policy, and write its condition if it is wrong."""
        path = f"{kind.path}/{quote(name, safe='')}"
        with self._api.request("GET", path) as answer:
            raw = answer.read()
        policy = kind.single(raw)
        patch = _wanted_patch(policy, raw) if isinstance(policy, ClusterPolicy) else None
        if patch is None:
            return
        body = msgspec.json.encode(patch)
        with self._api.request("PATCH", f"{path}/status", body=body, content_type=_MERGE_PATCH) as answer:
            answer.read()
        self._log.info("condition set", kind=kind.name, object=name)


def _is_wrong(policy: ClusterPolicy, raw: bytes | msgspec.Raw) -> bool:
    """Whether a policy's condition must be written; false if its status cannot be decoded."""
    try:
        return _wanted_patch(policy, raw) is not None
    except UNDECODABLE:
        return False


def _wanted_patch(policy: ClusterPolicy, raw: bytes | msgspec.Raw) -> dict[str, Any] | None:
    """The merge patch (RFC 7386) that sets the condition and keeps others' conditions; None if it is set."""
    seen = _SEEN.decode(raw)
    conditions = (seen.status.conditions if seen.status else None) or []
    wanted = condition(policy, conditions, seen.metadata.generation)
    if wanted is None:
        return None
    conditions = [*(one for one in conditions if one.get("type") != ACCEPTED), wanted]
    return {
        "metadata": {"resourceVersion": seen.metadata.resource_version},
        "status": {"conditions": conditions},
    }


def condition(policy: ClusterPolicy, conditions: list[dict[str, Any]], generation: int) -> dict[str, Any] | None:
    """The condition to write on a policy that has ``conditions``; None if there is nothing to write.

    A policy without problems gets one only if it has one already: most policies never have problems.
    """
    had = next((one for one in conditions if one.get("type") == ACCEPTED), {})
    if policy.problems:
        status, reason, message = "False", NOT_AS_WRITTEN, _shortened("; ".join(policy.problems))
    elif had:
        status, reason, message = "True", AS_WRITTEN, "felix-py applies all of it as written"
    else:
        return None
    wanted: dict[str, Any] = {
        "type": ACCEPTED,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": generation,
    }
    if all(had.get(key) == value for key, value in wanted.items()):
        return None
    since = had.get("lastTransitionTime") if had.get("status") == status else None
    return wanted | {"lastTransitionTime": since or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _shortened(message: str) -> str:
    """Bound the message: it is stored in etcd for each policy."""
    return message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 2] + " …"


_SEEN = msgspec.json.Decoder(wire.Judged)
_MERGE_PATCH = "application/merge-patch+json"
