"""Pods that are started one after the other while something happens to their nodes."""

from __future__ import annotations

import itertools
import threading
from datetime import datetime
from types import TracebackType

from tests.cluster.workloads import Namespace, pod

_PAUSE = 5.0


class Starts:
    """Creates a pod every five seconds, on each node in turn, for as long as the ``with`` lasts."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: Exception | None = None
        self._names: list[str] = []

    def __enter__(self) -> Starts:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()

    def seconds(self) -> list[float]:
        """From each pod's creation until it was Ready, as the API server's clock counted them.

        Raises:
            CommandFailed: one is not Ready in two minutes.
        """
        if self._failure:
            raise self._failure
        self._namespace.wait_ready(*self._names)
        pods = self._namespace.pods()
        return [_took(pods[name]) for name in self._names]

    def _run(self) -> None:
        nodes = itertools.cycle(node.name for node in self._namespace.cluster.nodes)
        try:
            while not self._ending.wait(_PAUSE):
                name = f"start-{len(self._names)}"
                self._namespace.apply(pod(name, {"app": "start"}, nodeName=next(nodes)))
                self._names.append(name)
        except Exception as error:
            self._failure = error


def _took(found: dict[str, object]) -> float:
    created = found["metadata"]["creationTimestamp"]  # type: ignore[index]
    conditions = found["status"]["conditions"]  # type: ignore[index]
    ready = next(one["lastTransitionTime"] for one in conditions if one["type"] == "Ready")
    return (_time(ready) - _time(created)).total_seconds()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
