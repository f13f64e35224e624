"""The kernel's table of connections is full: nothing is open by that, connections are ended, and it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.notices import NoticeKind
from felix_py.records import Backend
from policy.model import Family
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import POLICY, PolicedNode
from tests.support.streams import Stream, Streams
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

_SYSCTLS = Path("/proc/sys/net/netfilter")
_MOST = 1 << 19
"""Entries that a test may make: 200 bytes of kernel memory each and more. Only the machine's own namespace may
set how many it takes (nf_conntrack_max)."""


def fill(most: int) -> None:
    """With connections that the kernel does not give up early."""
    rest = "-d 198.51.100.7 --sport 40000 --dport 80 --state ESTABLISHED -t 6000 -u ASSURED,SEEN_REPLY"
    sources = (f"100.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(most))
    run("conntrack", "-R", "-", stdin="".join(f"-I -p tcp -s {s} {rest}\n" for s in sources), check=False)


def goes_on(stream: Stream) -> None:
    before = stream.progress
    eventually(lambda: stream.progress > before + 20, 30)


def test_a_full_table(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> None:
    most = int((_SYSCTLS / "nf_conntrack_max").read_text())
    if most > _MOST:
        pytest.skip(f"this machine's table takes {most} connections")
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node, Streams() as streams:
        node.set_up()
        stream = node.stream(streams, Family.V4, "api", "db", 80)
        goes_on(stream)
        fill(most)
        assert int((_SYSCTLS / "nf_conntrack_count").read_text()) > 0.99 * most
        assert node.reached() == set()
        eventually(lambda: [n["kind"] for n in node.status()["notices"]] == [NoticeKind.CONNECTIONS_FULL], 30)

        # What was there lives on, and ends with its permission.
        goes_on(stream)
        node.relabel("api", app="nobody")
        ends = ("-s", node.addresses["api"][Family.V4], "-d", node.addresses["db"][Family.V4])
        eventually(lambda: not run("conntrack", "-L", *ends), 30)
        node.add_pod("late", app="late")
        node.delete_pod("late")
        del node.places["late"], node.addresses["late"]

        run("conntrack", "-F")
        assert node.reached() == POLICY - {("api", "db")}
        eventually(lambda: node.status()["notices"] == [], 30)
