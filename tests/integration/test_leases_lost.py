"""The whole agent starts without the address store that it had: running pods keep their network and policy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family, Packet, Protocol
from tests.support import kernel_state
from tests.support.cni import host_interfaces
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import LiveNode
from tests.support.streams import Streams
from tests.support.traffic import attempt, serve
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


@pytest.fixture(params=list(Backend), ids=str)
def node(
    request: pytest.FixtureRequest, tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> Iterator[LiveNode]:
    with LiveNode(tmp_path, Backend(request.param), make_netns) as made:
        made.allow("db", {"app": "db"}, {"app": "web"})
        made.start()
        made.ready()
        for name in ("web", "db", "other"):
            made.add_pod(name, app=name)
        yield made


def answered(node: LiveNode, server: str) -> set[str]:
    """Which pods reach a pod, each in both families."""
    addresses = node.addresses
    clients = [name for name in node.places if name != server]
    tries = {
        Packet(addresses[client][family], addresses[server][family], Protocol.TCP, 80): client
        for client in clients
        for family in Family
    }
    with serve([(node.places[server], address, Protocol.TCP, 80) for address in addresses[server].values()]):
        got = [tries[packet] for packet in attempt([(node.places[c], packet) for packet, c in tries.items()], 2)]
    return {name for name in clients if got.count(name) == len(Family)}


def lose(node: LiveNode, how: str) -> None:
    state = node.folder / "state"
    if how == "gone":
        shutil.rmtree(state)
    else:
        (state / "leases.db").write_bytes(b"not a database" * 1000)


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_pods_keep_network_and_policy(node: LiveNode, how: str) -> None:
    assert answered(node, "db") == {"web"}
    routes = [kernel_state.routes(family) for family in Family]
    with Streams() as streams:
        going = [node.stream(streams, family, "web", "db", 81) for family in Family]
        eventually(lambda: all(stream.progress > 20 for stream in going))
        node.kill()
        lose(node, how)
        node.start()
        node.ready()
        before = [stream.progress for stream in going]
        eventually(lambda: all(s.progress > b + 20 for s, b in zip(going, before, strict=True)))
    assert [kernel_state.routes(family) for family in Family] == routes
    assert [notice["kind"] for notice in node.status()["notices"]] == ["leases-rebuilt"]
    node.add_pod("new", app="web")
    held = [a for name in ("web", "db", "other") for a in node.addresses[name].values()]
    assert not set(held) & set(node.addresses["new"].values())
    assert answered(node, "db") == {"web", "new"}
    node.delete_pod("other")
    assert len(host_interfaces()) == 3


def test_where_nobody_can_tell_the_agent_does_not_start(node: LiveNode) -> None:
    """As after an upgrade from a version without labels that has lost its leases. What was in force stays."""
    node.kill()
    lose(node, "gone")
    for interface in host_interfaces():
        run("ip", "link", "set", interface, "alias", "")
    node.start()
    assert node.exit_code() == 1
    assert "leases.db is missing, and these interfaces of pods do not tell which addresses they hold" in node.log
    assert answered(node, "db") == {"web"}
