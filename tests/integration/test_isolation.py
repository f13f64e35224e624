"""The tests' own namespaces: nothing leaks into the machine's."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support.isolate import NetworkNamespace, run

pytestmark = pytest.mark.root


def test_process_is_not_in_the_machines_network() -> None:
    assert os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net")
    assert os.readlink("/proc/self/ns/mnt") != os.readlink(f"/proc/{os.getppid()}/ns/mnt")


@pytest.mark.usefixtures("netns")
def test_rules_stay_in_the_test(make_netns: Callable[[str], NetworkNamespace]) -> None:
    run("iptables-nft", "-A", "FORWARD", "-j", "DROP")
    other = make_netns("other")
    assert "-j DROP" in run("iptables-nft", "-S", "FORWARD")
    assert "-j DROP" not in other.run("iptables-nft", "-S", "FORWARD")
