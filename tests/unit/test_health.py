"""The health endpoint: what anybody may ask for costs the event loop a bounded share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Metric

from felix_py.observe.health import HealthServer


class Slow:
    """Metrics that take long to make."""

    def __init__(self, seconds: float) -> None:
        self.made = 0
        self.seconds = seconds

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        self.made += 1
        time.sleep(self.seconds)
        metric = Metric("made", "How often.", "gauge")
        metric.add_sample("made", {}, self.made)
        yield metric


async def ask(health: HealthServer) -> str:
    request: Any = None
    body = (await health._metrics(request)).body
    assert isinstance(body, bytes)
    return body.decode()


async def test_metrics_that_take_long_are_not_made_anew_for_everybody_who_asks() -> None:
    slow = Slow(0.1)
    registry = CollectorRegistry()
    registry.register(slow)

    async def refresh() -> None:
        await asyncio.sleep(0.01)

    health = HealthServer(registry, lambda: None, dict, refresh)
    answers = await asyncio.gather(*(ask(health) for _ in range(20)))
    assert "made 1.0" in answers[0]
    assert set(answers) == {answers[0]}
    assert slow.made == 1
    slow.seconds = 0.0
    health._fresh_until = 0.0  # the time is over
    assert "made 2.0" in await ask(health)
