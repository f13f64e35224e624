"""Broken policies of all kinds, from JSON to the text that iptables-restore reads.

Runs for ten seconds (``make test-all``: a minute). FELIX_PY_FUZZ_SECONDS sets another time; FELIX_PY_FUZZ_SEED
makes it begin where it failed.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from felix_py.dataplane.iptables_restore import Change, transaction
from felix_py.dataplane.iptables_text import render_chain
from felix_py.dataplane.kernel import Kernel
from felix_py.desired.marks import Marks
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions
from felix_py.records import Backend, Update
from felix_py.ruleset.words import split
from policy.engine.interpret import allowed
from policy.model import ClusterPolicy, Family, NetworkPolicy, PolicyRef
from policy.oracle.evaluate import Snapshot, verdict
from policy.parse import Rejected, parse_network_policy
from policy.parse_cluster import parse_admin_policy, parse_baseline_admin_policy, parse_cluster_policy
from tests.support.garbage import Writer
from tests.support.isolate import new_netns
from tests.support.rules import words
from tests.support.spec import NAMESPACES, NODE, PODS, loaded, packets
from tests.support.thorough import FUZZ_SECONDS
from tests.support.told import ToldEngine

OPTIONS = StaticOptions(Marks.from_mask(0xFFFF0000))
PARSERS: dict[str, Callable[[Any], NetworkPolicy | ClusterPolicy]] = {
    "NetworkPolicy": parse_network_policy,
    "ClusterNetworkPolicy": parse_cluster_policy,
    "AdminNetworkPolicy": parse_admin_policy,
    "BaselineAdminNetworkPolicy": parse_baseline_admin_policy,
}
ENDS = ("web", "db", "dev", "out", "host")
QUESTIONS = [
    packet
    for pair in itertools.permutations(ENDS, 2)
    for port in ("tcp 80", "udp 81")
    for packet in packets(" ".join((*pair, port)))
]
_ROUND = 50
CHAIN, HASH, SAFE = r"FELIX-[A-Z0-9a-f-]+", r"[0-9a-f]{16}", r"[^\x00-\x1f\x7f]*"
LINE = re.compile(
    rf"\*(filter|nat|mangle|raw)|COMMIT|:{CHAIN} - \[0:0\]"
    rf'|-A {CHAIN}{SAFE} (-[jg] [A-Z]{SAFE}|-m comment --comment "felix:{HASH} [0-9a-f]+({SAFE})?")'
)

Policies = dict[PolicyRef, NetworkPolicy | ClusterPolicy]


@pytest.mark.timeout(FUZZ_SECONDS + 120)
def test_no_document_breaks_anything() -> None:
    first = int(os.environ.get("FELIX_PY_FUZZ_SEED", random.randrange(2**32)))
    end = time.monotonic() + FUZZ_SECONDS
    policies: Policies = {}
    engine, planner = loaded(()), Planner(tuple(Family), OPTIONS, {})
    for seed in itertools.count(first):
        try:
            _step(random.Random(seed), policies, engine, planner)
            if seed % _ROUND == 0:
                _compare(policies, engine)
                if not os.geteuid():
                    _try_in_kernel(policies, list(Backend)[seed // _ROUND % len(Backend)])
        except BaseException as error:
            error.add_note(f"FELIX_PY_FUZZ_SEED={seed} (began at {first})")
            raise
        if time.monotonic() > end:
            break


def _step(rng: random.Random, policies: Policies, engine: ToldEngine, planner: Planner) -> None:
    kind, document = Writer(rng).document()
    try:
        policy = PARSERS[kind](document)
    except Rejected:
        return
    assert all(problem.isprintable() for problem in policy.problems)
    policies[policy.ref] = policy
    engine.upsert(policy)
    if rng.random() < 0.3 and len(policies) > 1:
        ref = rng.choice(list(policies))
        del policies[ref]
        engine.told.remove(NetworkPolicy, ref)
    for delta in engine.flush():
        planner.policy(delta)
    for update in (planner.take(), planner.confirm()):
        _check_text(update)


def _check_text(update: Update) -> None:
    """As many lines as there are rules, each nothing but its words, and each word what the plan gave."""
    for key, rules in update.chains.items():
        if rules is None:
            continue
        rendered = render_chain(rules)
        lines = tuple(f"-A {key.name} {rule.text}" for rule in rendered)
        text = transaction([Change(key, lines, (), rendered)])
        found = text.split("\n")
        assert len(found) == len(rendered) + 4, text
        assert all(LINE.fullmatch(line) for line in found if line), text
        written = [rule for rule in rendered if not rule.is_seal]
        assert len(written) - len(rules) in (0, 1)
        for spec, rule in zip(rules, written, strict=False):
            assert tuple(split(rule.text)) == words(spec)


def _compare(policies: Policies, engine: ToldEngine) -> None:
    """With the oracle, and with an engine that has seen nothing else."""
    snapshot = Snapshot(NAMESPACES, PODS.values(), policies.values(), [NODE])
    programs = {family: engine.program(family) for family in Family}
    for packet in QUESTIONS:
        truth = verdict(snapshot, packet).allowed
        assert allowed(programs[Family.V6 if ":" in packet.source else Family.V4], packet) is truth, packet
    fresh = loaded(policies.values())
    assert programs == {family: fresh.program(family) for family in Family}


def _try_in_kernel(policies: Policies, backend: Backend) -> None:
    """The kernel takes all of it."""
    planner = Planner(tuple(Family), OPTIONS, {})
    for delta in loaded(policies.values()).flush():
        planner.policy(delta)
    with new_netns(), Kernel(tuple(Family), backend) as kernel:
        kernel.load()
        kernel.update(planner.take())
        assert kernel.apply().failures == ()


def test_garbage_is_mostly_understood_in_part() -> None:
    """Else the other test would only ever see nothing."""
    parsed = [Writer(random.Random(seed)).document() for seed in range(300)]
    kept = []
    for kind, document in parsed:
        try:
            kept.append(PARSERS[kind](document))
        except Rejected:
            continue
    assert sum(bool(policy.problems) for policy in kept) > 60
    assert sum(not policy.problems for policy in kept) > 30
