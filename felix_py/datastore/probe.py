"""Probes the API server when a watch has been silent for long.

TCP keepalive detects a vanished host, but not a hung server. Any answer but a gateway's error means that it is
alive. One request serves all silent watches.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from felix_py import log
from felix_py.datastore.client import Api, ApiError, Unreachable
from felix_py.datastore.clock import Clock, SystemClock
from felix_py.datastore.informer import Reflector, Timing
from felix_py.datastore.outage import GATEWAY

PATH = "/version"
"""Open to every authenticated client (ClusterRole system:public-info-viewer), and cheap for the server."""

_STOP_TIMEOUT = 2.0


class Probe:
    """Supervises the watches of several kinds from a thread of its own."""

    def __init__(
        self, api: Api, reflectors: Sequence[Reflector[Any]], timing: Timing, clock: Clock | None = None
    ) -> None:
        self._api = api
        self._reflectors = reflectors
        self._timing = timing
        self._clock = clock or SystemClock()
        self._log = log.get("probe")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def start(self) -> None:
        """Begin to supervise."""
        self._thread.start()

    def stop(self) -> None:
        """End. Blocks for a request under way, two seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        while not self._clock.wait(self._timing.silence / 3, self._stop):
            try:
                self._look()
            except Exception:
                self._log.exception("defect in the probe")

    def _look(self) -> None:
        silent = [(one, answer) for one in self._reflectors if (answer := one.silent()) is not None]
        if not silent:
            return
        reason = self._no_answer()
        if reason:
            kinds = [one.kind.name for one, _ in silent]
            self._log.warning("no answer from the API server, watches begin anew", kinds=kinds, reason=reason)
        for one, answer in silent:
            if reason:
                one.give_up(answer)
            else:
                one.vouch(answer)

    def _no_answer(self) -> str:
        """Why the server counts as gone, or empty if it is alive."""
        try:
            with self._api.request("GET", PATH, read_timeout=self._timing.probe) as answer:
                answer.read()
        except ApiError as error:
            return str(error) if error.status in GATEWAY else ""
        except Unreachable as error:
            return str(error)
        return ""
