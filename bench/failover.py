"""How long packets go the wrong way when one of two routers fails: the whole agent beside a BIRD 2 in its place.

The node has one route by two routers (ECMP). Time until the kernel's route has no next hop at the one that fails:
its link loses the carrier; it falls silent while the carrier stays, with BFD at 300 ms x 3; and the same without
BFD, with a hold time of 9 seconds, which is the least that most routers have.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import Row, show
from tests.support.bgp import NODE_ASN, TOR_ASN, link
from tests.support.bird import Bird
from tests.support.declared_agent import declared_agent
from tests.support.fakeapi import BGP_CONFIGURATIONS
from tests.support.isolate import Here, NetworkNamespace, new_netns, run
from tests.support.waiting import eventually

_PREFIX = "10.65.200.0/24"
_PATIENCE = 300.0
_HOLD = 9


@dataclass(frozen=True)
class _Failure:
    """``bfd``: the sessions have it; ``fail``: what happens at the first router."""

    what: str
    bfd: bool
    fail: Callable[[NetworkNamespace], object]


def _lose_carrier(router: NetworkNamespace) -> None:
    router.run("ip", "link", "set", "node", "down")


def _fall_silent(router: NetworkNamespace) -> None:
    router.run("iptables", "-w", "-I", "OUTPUT", "-j", "DROP")


_FAILURES = (
    _Failure("its link loses the carrier", False, _lose_carrier),
    _Failure("it falls silent, with BFD", True, _fall_silent),
    _Failure("it falls silent, without BFD", False, _fall_silent),
)


def main(quick: bool) -> None:
    """Each failure, by BIRD and by felix-py in turn."""
    for failure in _FAILURES[:2] if quick else _FAILURES:
        rows = [Row("BIRD", base=True), Row("felix-py")]
        for _ in range(1 if quick else 3):
            for row, node in zip(rows, (_bird, _felix), strict=True):
                row.values.append(_measure(failure, node))
        show(f"failover: a router fails, {failure.what}", rows)


def _measure(failure: _Failure, node: Callable[[Path, bool], AbstractContextManager[None]]) -> float:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(new_netns())
        routers: list[NetworkNamespace] = []
        birds: list[Bird] = []
        for index in (0, 1):
            routers.append(NetworkNamespace(f"tor{index}"))
            stack.callback(routers[-1].close)
            link(routers[-1], index)
            birds.append(Bird(routers[-1], folder / f"tor{index}", _router(index, failure.bfd)))
            stack.callback(birds[-1].stop)
            birds[-1].start()
        stack.enter_context(node(folder, failure.bfd))
        eventually(lambda: _next_hops() == {"10.9.0.2", "10.10.0.2"}, _PATIENCE)
        if failure.bfd:
            eventually(lambda: " Up " in birds[0].birdc("show", "bfd", "sessions"), _PATIENCE)
        failure.fail(routers[0])
        since = time.perf_counter()
        eventually(lambda: "10.9.0.2" not in _next_hops(), _PATIENCE, pause=0.002)
        return time.perf_counter() - since


def _next_hops() -> set[str]:
    return set(re.findall(r"via (\S+)", run("ip", "-4", "route", "show", _PREFIX)))


def _router(index: int, bfd: bool) -> str:
    return f"""
    router id 10.{9 + index}.0.2;
    protocol device {{ }}
    protocol bfd {{ interface "*" {{ interval 300 ms; multiplier 3; }}; }}
    protocol static {{ ipv4; route {_PREFIX} blackhole; }}
    protocol bgp node {{
      local as {TOR_ASN}; neighbor 10.{9 + index}.0.1 as {NODE_ASN};
      {"bfd on;" if bfd else ""} connect delay time 1; hold time {_HOLD};
      ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
    }}
    """


@contextmanager
def _bird(folder: Path, bfd: bool) -> Iterator[None]:
    sessions = "".join(
        f"""
        protocol bgp tor{index} {{
          local as {NODE_ASN}; neighbor 10.{9 + index}.0.2 as {TOR_ASN}; direct; check link yes;
          {"bfd on;" if bfd else ""} connect delay time 1; hold time {_HOLD};
          ipv4 {{ import all; export none; }};
        }}
        """
        for index in (0, 1)
    )
    text = f"""
    router id 10.9.0.1;
    protocol device {{ }}
    protocol direct {{ ipv4; }}
    protocol bfd {{ interface "*" {{ interval 300 ms; multiplier 3; }}; }}
    protocol kernel {{ merge paths on; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
    {sessions}
    """
    bird = Bird(Here(), folder / "node", text)
    bird.start()
    try:
        yield
    finally:
        bird.stop()


@contextmanager
def _felix(folder: Path, bfd: bool) -> Iterator[None]:
    with declared_agent(folder, options=["--cluster-cidr=10.65.0.0/16"]) as agent:
        agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False)
        for index in (0, 1):
            agent.peer(index, holdTime=f"{_HOLD}s", **({"bfd": {}} if bfd else {}))
        agent.start()
        yield
