"""A pod's addresses in its annotation ``felixpy.io/pod-ips``, before the kubelet has them in the status.

Written through ``pods/status``, as other CNI plugins do: with the right to patch that, nobody can change what a
pod runs. Nothing is repeated: of a pod's first interface the status tells the same a second later; who asks for
another one is told whether it was written.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote

import msgspec

from felix_py import log
from felix_py.datastore.client import Api, ApiError, Unreachable
from policy.model import ObjectKey

ANNOTATION = "felixpy.io/pod-ips"
"""Addresses, separated by commas."""

_QUEUED = 256
_STOP_TIMEOUT = 2.0


class _Announcement(NamedTuple):
    pod: ObjectKey
    uid: str
    addresses: tuple[str, ...]
    done: Callable[[str], None] | None


class AnnouncementWriter:
    """Writes from a thread of its own, which begins with the first announcement."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._log = log.get("announcements")
        self._queue: queue.Queue[_Announcement | None] = queue.Queue(_QUEUED)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = ""

    def announce(
        self, pod: ObjectKey, uid: str, addresses: tuple[str, ...], done: Callable[[str], None] | None = None
    ) -> None:
        """Write the addresses that a pod has, after what was asked for before. Never waits or fails.

        ``uid``: empty matches any pod of the name. ``done`` is called, perhaps in another thread, with the reason
        why it was not written, or empty.
        """
        try:
            self._queue.put_nowait(_Announcement(pod, uid, addresses, done))
        except queue.Full:  # the server is slow; the status comes without us
            if done:
                done("the API server is slow")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="announcements", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End; what is queued is dropped. Blocks for a request under way, two seconds at most."""
        self._stop.set()
        with contextlib.suppress(queue.Full):  # the thread checks the flag after each write
            self._queue.put_nowait(None)
        if self._thread is not None:
            self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        while (asked := self._queue.get()) is not None and not self._stop.is_set():
            problem = ""
            try:
                self._write(asked)
                self._failing = ""
            except (ApiError, Unreachable) as error:
                problem = str(error)
                self._say(error, asked)
            except Exception as error:
                problem = repr(error)
                self._log.exception("defect in the writer of announcements")
            if asked.done:
                asked.done(problem)

    def _write(self, asked: _Announcement) -> None:
        metadata = {"annotations": {ANNOTATION: ",".join(asked.addresses)}}
        # With its uid, so that a later pod of the name is not meant: the server refuses (409). A static pod has
        # another uid here than in the API, so it is not announced.
        uid = {"uid": asked.uid} if asked.uid else {}
        namespace, name = (quote(part, safe="") for part in asked.pod)
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/status"
        body = msgspec.json.encode({"metadata": metadata | uid})
        content_type = "application/merge-patch+json"
        with self._api.request("PATCH", path, body=body, content_type=content_type) as answer:
            answer.read()

    def _say(self, error: ApiError | Unreachable, asked: _Announcement) -> None:
        """Once for each reason: 403 without the right, and then for every pod. 404 and 409 are no failures."""
        if isinstance(error, ApiError) and error.status in (404, 409):
            return
        if self._failing != (kind := type(error).__name__ + str(getattr(error, "status", ""))):
            self._failing = kind
            self._log.warning("cannot announce a pod's addresses", pod="/".join(asked.pod), reason=str(error))
