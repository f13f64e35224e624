"""A pod's addresses in its annotation ``felixpy.io/pod-ips``, until the kubelet has them in the status.

Written through ``pods/status``, as other CNI plugins do: with the right to patch that, nobody can change what a
pod runs. Best effort: a second later the status tells the same, so nothing is repeated, and no call waits for it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from urllib.parse import quote

import msgspec

from felix_py import log
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.records import Lease

ANNOTATION = "felixpy.io/pod-ips"
"""Addresses, separated by commas."""

_QUEUED = 256
_STOP_TIMEOUT = 2.0


class AnnouncementWriter:
    """Writes from a thread of its own, which begins with the first announcement."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._log = log.get("announcements")
        self._queue: queue.Queue[Lease | None] = queue.Queue(_QUEUED)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = ""

    def announce(self, lease: Lease) -> None:
        """Write the addresses of a pod that is connected. Never waits or fails."""
        with contextlib.suppress(queue.Full):  # the server is slow; the status comes without us
            self._queue.put_nowait(lease)
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
        while (lease := self._queue.get()) is not None and not self._stop.is_set():
            try:
                self._write(lease)
                self._failing = ""
            except (ApiError, Unreachable) as error:
                self._say(error, lease)
            except Exception:
                self._log.exception("defect in the writer of announcements")

    def _write(self, lease: Lease) -> None:
        metadata = {"annotations": {ANNOTATION: ",".join(lease.addresses.values())}}
        # With its uid, so that a later pod of the name is not meant: the server refuses (409). A static pod has
        # another uid here than in the API, so it is not announced.
        uid = {"uid": lease.uid} if lease.uid else {}
        path = f"/api/v1/namespaces/{quote(lease.namespace, safe='')}/pods/{quote(lease.pod, safe='')}/status"
        body = msgspec.json.encode({"metadata": metadata | uid})
        content_type = "application/merge-patch+json"
        with self._api.request("PATCH", path, body=body, content_type=content_type) as answer:
            answer.read()

    def _say(self, error: ApiError | Unreachable, lease: Lease) -> None:
        """Once for each reason: 403 without the right, and then for every pod. 404 and 409 are no failures."""
        if isinstance(error, ApiError) and error.status in (404, 409):
            return
        if self._failing != (kind := type(error).__name__ + str(getattr(error, "status", ""))):
            self._failing = kind
            pod = f"{lease.namespace}/{lease.pod}"
            self._log.warning("cannot announce a pod's addresses", pod=pod, reason=str(error))
