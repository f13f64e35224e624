"""We and a kube-proxy write rules at the same time, for a long time: nothing of either is lost.

``FELIX_PY_SOAK_SECONDS`` says for how long; without it, it is a few rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from felix_py import pace, pending
from felix_py.records import Backend
from policy.model import Family, IPBlock, NetworkPolicy, PolicyRule
from policy.selectors import EVERYTHING as ALL_PODS
from tests.support import kernel_state
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import until
from tests.support.watched import WatchedNode

SOAK = float(os.environ.get("FELIX_PY_SOAK_SECONDS", "0"))
ROUNDS = 8
"""Of each side at least, when it is no soak."""

GONE_BY_THEN = "Set with index"
"""iptables-legacy-save copies a table and asks for the names of its sets later, without the lock: one that has
been destroyed in between, with the last rule that used it, has none. The tool gives up; its caller reads again.
"""

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(SOAK + 120)]
MakeNetns = Callable[[str], NetworkNamespace]


class Other:
    """The process, and what it has reported so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.rounds: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            self.rounds.append(json.loads(line))

    async def stop(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        await self._reader
        assert await self.process.wait() == 0


@asynccontextmanager
async def other_writer(backend: Backend) -> AsyncIterator[Other]:
    """It has written all its rules and jumps once."""
    pipe = asyncio.subprocess.PIPE
    argv = [sys.executable, "-m", "tests.support.kube_proxy", backend.value]
    other = Other(await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe))
    try:
        await until(lambda: len(other.rounds) >= 2)
        yield other
    finally:
        if other.process.returncode is None:
            other.process.kill()
            await other.process.wait()


def policies(number: int) -> Iterator[NetworkPolicy]:
    """What changes from round to round: policies with rules of their own number."""
    for which in range(6):
        rules = tuple(PolicyRule((IPBlock(f"10.{200 + which}.{n}.0/24"),)) for n in range((number + which) % 5))
        yield NetworkPolicy("shop", f"p{which}", ALL_PODS, ingress=rules, egress=rules[:1] if which % 2 else None)


VANDALISM = [
    ("chain", "-F FELIX-FORWARD"),
    ("chain", "-D FELIX-INPUT 1"),
    ("chain", "-I FELIX-FORWARD 1 -j RETURN"),
    ("chain", "-N FELIX-NOBODYS"),
    ("hook", "-D FORWARD 1"),
    ("hook", "-I FORWARD 1 -p tcp --dport 7 -j RETURN"),
]


class Side:
    """Our side: policies and pods change, others spoil what is ours, and all of it is put right."""

    def __init__(self, node: WatchedNode, make_netns: MakeNetns) -> None:
        self._node = node
        self._make_netns = make_netns
        self._random = random.Random(2)
        self.spoilt: Counter[str] = Counter()
        self.rounds = 0

    async def round(self) -> None:
        self.rounds += 1
        for policy in policies(self.rounds):
            self._node.facts.upsert(policy)
        if self.rounds % 5 == 0:
            self._node.facts.delete(NetworkPolicy("shop", "p0", ALL_PODS))
        if self.rounds % 4 == 1:
            await self._node.add_pod(f"c{self.rounds}", self._make_netns("pod"))
        elif self.rounds % 4 == 3:
            await self._node.remove_pod(f"c{self.rounds - 2}")
        await self._node.reconciler.settled()
        await self._spoil()

    async def _spoil(self) -> None:
        kind, command = self._random.choice(VANDALISM)
        tool = self._random.choice(["iptables", "ip6tables"])
        await asyncio.to_thread(run, f"{tool}-{self._node.backend}", "-w", *command.split())
        self.spoilt[kind] += 1
        try:
            await until(lambda: self._node.drift() == self.spoilt, 30)
        except TimeoutError:
            pytest.fail(f"after {command}: {self._node.drift()} and not {self.spoilt}: {self._node.logged[-5:]}")
        await self._node.reconciler.settled()
        if "--dport 7" in command:
            undo = command.replace("-I FORWARD 1", "-D FORWARD")
            await asyncio.to_thread(run, f"{tool}-{self._node.backend}", "-w", *undo.split())


async def test_nothing_is_lost(
    make_netns: MakeNetns, backend: Backend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # More often than in earnest: more chances to collide.
    monkeypatch.setattr(pending, "_SOON", (0.05, 0.5, 0.1))
    monkeypatch.setattr(pace, "_SHARE", 0)

    async with other_writer(backend) as other, WatchedNode(backend) as node:
        side = Side(node, make_netns)
        end = time.monotonic() + SOAK
        while side.rounds < ROUNDS or len(other.rounds) < 2 * ROUNDS or time.monotonic() < end:
            await side.round()
        await other.stop()
        await check_theirs(other)
        await check_ours(node, side)
        report(backend, node, side, other, capsys)


async def check_theirs(other: Other) -> None:
    """Every look of theirs found all that they had written before, the last one at the end."""
    assert [line["number"] for line in other.rounds[-2:]] == [-1, -1]
    lost = [line for line in other.rounds if line["lost"]]
    assert [(line["number"], line["family"], line["lost"][:5]) for line in lost] == [], other.rounds[:8]
    assert [line["retried"] for line in other.rounds if line["retried"]] == []
    assert [words for line in other.rounds for words in line["unread"] if GONE_BY_THEN not in words] == []


async def check_ours(node: WatchedNode, side: Side) -> None:
    """Nothing was ever found missing but what the vandal took, nothing could not be written, and all is there."""
    assert await node.reconciler.differences() == []
    await node.reconciler.settled()
    assert node.drift() == side.spoilt
    assert [line for line in node.logged if line["event"] == "cannot write"] == []
    for family in Family:
        rules = kernel_state.rules(family, node.backend, "filter", "FORWARD")
        assert ["felix:" in rule for rule in rules] == [True, False, *[True] * 4], rules
        assert rules[1] == "-j KUBE-FORWARD"


def report(
    backend: Backend, node: WatchedNode, side: Side, other: Other, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures of a soak, for whoever ran it."""
    if not SOAK:
        return
    restores = node.metrics.registry.get_sample_value("felix_py_iptables_restores_total")
    with capsys.disabled():
        print(
            f"\n{backend} {SOAK:g} s: we {side.rounds} rounds, {restores:g} restores, "
            f"{len(node.kernel.looks)} looks, drift {dict(side.spoilt)}; "
            f"they {len(other.rounds)} rounds, {sum(line['written'] for line in other.rounds)} rules written, "
            f"{max(line['rules'] for line in other.rounds)} rules held at most"
        )
