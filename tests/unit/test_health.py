"""The health endpoint: what anybody may ask for costs the event loop a bounded share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry, Metric

from felix_py.observe.health import HealthServer
from felix_py.observe.listener import listen


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

    health = HealthServer(registry, dict, dict, refresh)
    answers = await asyncio.gather(*(ask(health) for _ in range(20)))
    assert "made 1.0" in answers[0]
    assert set(answers) == {answers[0]}
    assert slow.made == 1
    slow.seconds = 0.0
    health._fresh_until = 0.0  # the time is over
    assert "made 2.0" in await ask(health)


# --- the probes --------------------------------------------------------------------------------------


@asynccontextmanager
async def served(parts: Mapping[str, str | None]) -> AsyncIterator[Callable[[str], Awaitable[tuple[int, str]]]]:
    async def refresh() -> None:
        pass

    listener = listen("127.0.0.1:0")
    port = listener.getsockname()[1]
    health = HealthServer(CollectorRegistry(), lambda: parts, dict, refresh)
    await health.start(listener)

    async def ask(path: str) -> tuple[int, str]:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, await answer.text()

    try:
        yield ask
    finally:
        await health.stop()


ILL = {"sync": None, "addresses": "this node has no podCIDRs yet", "policy": "chain X:\nrefused", "kernel": None}


async def test_readiness_is_told_by_parts() -> None:
    async with served(ILL) as ask:
        assert await ask("/readyz") == (503, "this node has no podCIDRs yet\n")
        status, text = await ask("/readyz?verbose")
        assert status == 503
        assert text.splitlines() == [
            "[+]sync ok",
            "[-]addresses failed: this node has no podCIDRs yet",
            "[-]policy failed: chain X: refused",
            "[+]kernel ok",
            "readyz check failed",
        ]
        assert await ask("/readyz?exclude=addresses") == (503, "chain X:\nrefused\n")
        assert await ask("/readyz?exclude=addresses&exclude=policy") == (200, "ok\n")
        status, text = await ask("/readyz?exclude=addresses&exclude=policy&exclude=%0aodd&verbose=1")
        assert status == 200
        assert text.splitlines()[1:] == [
            "[+]addresses excluded: ok",
            "[+]policy excluded: ok",
            "[+]kernel ok",
            'warn: some health checks cannot be excluded: no matches for "odd"',
            "readyz check passed",
        ]


async def test_liveness_is_only_whether_the_loop_turns() -> None:
    async with served(ILL) as ask:
        for name in ("livez", "healthz"):
            assert await ask(f"/{name}") == (200, "ok\n")
            assert await ask(f"/{name}?verbose") == (200, "[+]loop ok\nlivez check passed\n")


async def test_who_asks_for_very_much_gets_a_short_answer() -> None:
    async with served({}) as ask:
        _, text = await ask("/readyz?verbose" + "&exclude=x" * 500)
        assert len(text) < 1000
