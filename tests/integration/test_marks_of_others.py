"""Another program has a packet's mark, and with it the class, overwritten or never set: real packets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.records import Backend
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import POLICY, PolicedNode

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

WITHOUT_CLASSES = {(source, target) for source, target in POLICY if target != "db"}
"""Who reaches whom while no packet has a class: nobody reaches the pod that has a policy."""


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_packets_without_a_class_reach_only_whom_no_policy_selects(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], backend: Backend
) -> None:
    with PolicedNode(tmp_path, backend, make_netns) as node:
        node.set_up("--refresh-interval", "3600")
        for mark in ("0x1", "0x0"):  # behind our rules, where others' may stand
            node.do(f"{{iptables}} -w -t mangle -A FORWARD -j MARK --set-mark {mark}")
            assert node.reached() == WITHOUT_CLASSES
            node.do(f"{{iptables}} -w -t mangle -D FORWARD -j MARK --set-mark {mark}")
            node.settled()
        for chain in ("FORWARD", "FELIX-CLASSIFY"):
            with node.paused():
                node.do(f"{{iptables}} -w -t mangle -F {chain}")
                assert node.reached() == WITHOUT_CLASSES
            node.settled()
