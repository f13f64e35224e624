"""What is said of pods' host interfaces that somebody has exchanged."""

from __future__ import annotations

from contextlib import closing

import pytest

from felix_py.dataplane.host_ends import HostEnds
from felix_py.dataplane.sysctl import HostSettings
from felix_py.layout import ROUTE_PROTOCOL_PODS
from felix_py.records import NextHop, Route, Update
from felix_py.refs import RouteRef
from tests.support.isolate import run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
HOST = "felix0123456789"
KEY = RouteRef("10.1.0.2/32", ROUTE_PROTOCOL_PODS)


def stranger(peer: str) -> int:
    """Another interface that has the pod's interface name."""
    run("ip", "link", "add", HOST, "type", "veth", "peer", "name", peer)
    return int(run("ip", "-o", "link", "show", HOST).partition(":")[0])


def test_another_interface_of_its_name_is_said_once_and_each_one() -> None:
    run("ip", "link", "add", HOST, "type", "veth", "peer", "name", "pods")
    with closing(HostEnds(HostSettings(()))) as ends:
        ends.update(Update(routes={KEY: Route(KEY, next_hops=(NextHop(interface=HOST),), link_scope=True)}))
        ends.load()
        ends.take_drift()
        ends.mend()
        run("ip", "link", "set", HOST, "name", "pod0")
        for peer in ("first", "second"):
            index = stranger(peer)
            said = f"interface {HOST}: another interface has that name now (index {index})"
            ends.load()
            assert said in map(str, ends.take_drift())
            # It is still there: it could not be renamed, say.
            ends.load()
            assert ends.take_drift() == []
            run("ip", "link", "del", HOST)
