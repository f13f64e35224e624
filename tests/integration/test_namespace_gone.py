"""Network namespaces that go while their pods are being connected: nothing of them stays behind."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import pytest

from felix_py.ipam.beside import read_leases
from policy.model import Family
from tests.support import kernel_state
from tests.support.agent_process import AgentProcess
from tests.support.cni import host_interfaces
from tests.support.fakeapi import POLICIES, FakeApi
from tests.support.isolate import NetworkNamespace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

WORKERS = 4
ROUNDS = int(os.environ.get("FELIX_PY_TEST_NAMESPACES", "15"))
"""For each worker."""

LONGEST = 0.03
"""Seconds from the beginning of an ADD until its namespace goes."""

DENY = {
    "metadata": {"name": "deny", "namespace": "default"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
}


def test_namespaces_that_go_while_pods_are_connected(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    """The namespace's name is gone in the middle of an ADD, and with the last process the namespace; then DEL
    comes, as from a runtime that tears down what has failed, or does not come, and then GC names who is left."""
    outcomes: list[int] = []
    with FakeApi() as api:
        api.put(POLICIES, DENY)
        agent = AgentProcess(tmp_path, api, options=["--backend=nft"])
        agent.start()
        try:
            agent.wait_ready()
            before = state()

            def worker(number: int) -> None:
                chance = random.Random(number)
                for turn in range(ROUNDS):
                    name = f"pod-{number}-{turn}"
                    agent.add_pod(name, app="web")
                    place = make_netns(name)
                    killer = Timer(chance.uniform(0.0, LONGEST), place.close)
                    killer.start()
                    code, _ = agent.call("ADD", name, place.path)
                    killer.join()
                    outcomes.append(code)
                    if chance.random() < 0.7:
                        assert agent.call("DEL", name, chance.choice(("", place.path))) == (0, {})

            with ThreadPoolExecutor(WORKERS) as pool:
                for done in [pool.submit(worker, number) for number in range(WORKERS)]:
                    done.result()
            assert 0 < outcomes.count(0) < len(outcomes)
            # What no DEL has come for.
            code, answer = agent.call("GC", "gc", "", cniVersion="1.1.0", **{"cni.dev/valid-attachments": []})
            assert (code, answer) == (0, {})
            assert read_leases(tmp_path / "lib/leases.db") == ()
            agent.until(lambda: not host_interfaces(), "the kernel takes a moment to end a namespace")
            agent.until(lambda: state() == before, "the kernel as it was")
            assert agent.get("/readyz")[0] == 200
            assert "Traceback" not in agent.log.read_text()
        finally:
            agent.close()


def state() -> object:
    """Routes, and all members of sets."""
    return [kernel_state.routes(family) for family in Family], kernel_state.sets()
