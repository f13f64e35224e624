"""The figures of a real agent: what operators ask at night, on a node where something happens."""

from __future__ import annotations

import fcntl
import re
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from felix_py.records import Backend
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import PolicedNode
from tests.support.metric_names import sample_names
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


def figures(node: PolicedNode) -> dict[str, float]:
    """Series -> value. They are fresh: what takes long to make is made anew only after a while."""
    text = node.ask("/metrics")[1]
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[:1] != "#"
    }


def value(node: PolicedNode, series: str) -> float:
    return figures(node)[series]


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_what_operators_ask(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], backend: Backend
) -> None:
    with PolicedNode(tmp_path, backend, make_netns) as node:
        node.set_up("--refresh-interval", "3600")
        status, text = node.ask("/readyz?verbose")
        assert (status, text) == (
            200,
            "[+]sync ok\n[+]addresses ok\n[+]policy ok\n[+]kernel ok\nreadyz check passed\n",
        )
        assert node.ask("/livez?verbose") == (200, "[+]loop ok\nlivez check passed\n")
        found = figures(node)
        assert {
            series for series, it in found.items() if series.startswith("felix_py_ready") and it != 1
        } == set()
        assert found['felix_py_ipam_addresses_in_use{cidr="10.1.0.0/24"}'] == 3
        assert found['felix_py_ipam_addresses_free{cidr="10.1.0.0/24"}'] == 251
        assert found["felix_py_endpoints"] == 3
        assert found['felix_py_kernel_objects{kind="class"}'] > 0
        assert found['felix_py_kernel_objects{kind="member"}'] > found['felix_py_kernel_objects{kind="set"}'] / 4
        build = next(series for series in found if series.startswith("felix_py_build_info"))
        assert f'backend="{backend}"' in build
        # An event that changes the kernel, and how late that was.
        counted = found["felix_py_event_to_kernel_seconds_count"]
        node.add_pod("late", app="api")
        eventually(lambda: value(node, "felix_py_event_to_kernel_seconds_count") > counted, 20)
        eventually(lambda: value(node, 'felix_py_ipam_addresses_in_use{cidr="10.1.0.0/24"}') == 4, 20)
        # Somebody has the lock: only the legacy tools wait for it.
        if backend is Backend.LEGACY:
            hold_lock_while(lambda: node.allow("web", {"app": "web"}, {"app": "late"}), node)
            assert value(node, "felix_py_xtables_lock_waits_total") >= 1
            assert value(node, "felix_py_xtables_lock_wait_seconds_total") > 0.5
        # A policy that nobody understands.
        node.api.put(
            "/apis/networking.k8s.io/v1/networkpolicies",
            {"metadata": {"name": "odd", "namespace": "shop", "uid": "o"}, "spec": {"podSelector": 7}},
        )
        odd = 'felix_py_objects_misunderstood{kind="NetworkPolicy"}'
        eventually(lambda: figures(node).get(odd) == 1, 20)
        node.api.delete("/apis/networking.k8s.io/v1/networkpolicies", "shop", "odd")
        eventually(lambda: odd not in figures(node), 20)
        # docs/metrics.md, the alerts and the dashboard know each by the same names.
        names = {re.split(r"[{ ]", series)[0] for series in figures(node)}
        assert names - set(sample_names()) - {"python_info"} == set()


def hold_lock_while(change: Callable[[], object], node: PolicedNode) -> None:
    """Another program holds the lock when the agent wants to write, and for two seconds more."""
    before = value(node, "felix_py_iptables_restores_total")
    with ExitStack() as stack:
        lock = stack.enter_context(Path("/run/xtables.lock").open())
        fcntl.flock(lock, fcntl.LOCK_EX)
        released = threading.Timer(2.0, lambda: fcntl.flock(lock, fcntl.LOCK_UN))
        released.start()
        stack.callback(released.join)
        change()
        eventually(lambda: value(node, "felix_py_iptables_restores_total") > before, 30)
