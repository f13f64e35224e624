"""A node's whole agent with a sidecar, and a BIRD outside that has a session of each family with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from felix_py.records import Backend
from policy.model import Family
from tests.support.bgp import NODE_ASN, TOR_ASN, Sidecar
from tests.support.bird import Bird
from tests.support.fakeapi import FakeApi
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import GATEWAY, NODE, LiveNode

V4, V6 = Family
_BIRD = f"""
router id {GATEWAY[V4]};
protocol device {{ }}
protocol kernel {{ ipv4 {{ export all; }}; }}
protocol kernel {{ ipv6 {{ export all; }}; }}
template bgp node {{ local as {TOR_ASN}; graceful restart on; connect delay time 1; }}
protocol bgp node4 from node {{ neighbor {NODE[V4]} as {NODE_ASN}; ipv4 {{ import all; export none; }}; }}
protocol bgp node6 from node {{ neighbor {NODE[V6]} as {NODE_ASN}; ipv6 {{ import all; export none; }}; }}
"""


@contextmanager
def peered_node(
    folder: Path, backend: Backend, make_netns: Callable[[str], NetworkNamespace], api: FakeApi | None = None
) -> Iterator[tuple[LiveNode, Bird]]:
    """The agent is not started yet: :func:`start` does."""
    with (
        Sidecar(folder / "run" / "bgp"),
        LiveNode(folder, backend, make_netns, api) as node,
        Bird(node.world, folder / "tor", _BIRD) as tor,
    ):
        peers = [{"peerIP": address, "asNumber": TOR_ASN} for address in GATEWAY.values()]
        config = {"asNumber": NODE_ASN, "routerID": NODE[V4], "peers": peers}
        (folder / "bgp.yaml").write_text(json.dumps(config))
        yield node, tor


def start(node: LiveNode, *options: str) -> None:
    """Start the agent with its peers; returns when it is ready."""
    node.start("--bgp-config", str(node.folder / "bgp.yaml"), *options)
    node.ready()


def announced(tor: Bird) -> set[str]:
    """What the router has from the node."""
    return tor.routes("node4") | tor.routes("node6")
