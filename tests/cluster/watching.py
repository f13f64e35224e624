"""Seeing when something ends: a policy that is in force, a node that is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from tests.cluster.machine import Machine

_PAUSE = 0.005


def last_success(machine: Machine, host: str, port: int, act: Callable[[], object]) -> float:
    """For how many seconds after ``act`` connections still came about; negative: they ended before it returned.

    They are tried one after the other, until one does not come about within three seconds.

    Raises:
        AssertionError: they came about for a minute, or not even before.
    """
    last = 0.0

    def connect() -> None:
        nonlocal last
        deadline = time.monotonic() + 60
        while machine.connects(host, port):
            last = time.monotonic()
            if last > deadline:
                return
            time.sleep(_PAUSE)

    assert machine.connects(host, port), f"nothing answers at {host}, port {port}"
    thread = threading.Thread(target=connect)
    thread.start()
    act()
    returned = time.monotonic()
    thread.join()
    assert not machine.connects(host, port), "connections still come about after a minute"
    return last - returned
