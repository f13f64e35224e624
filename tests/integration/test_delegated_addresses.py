"""The whole agent on a node without podCIDRs, with a network list of its own that names another IPAM plugin."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from felix_py.records import Backend
from policy.model import Family, Packet, Protocol
from tests.support.cni import STANDARD_PLUGINS
from tests.support.fakeapi import NODES
from tests.support.isolate import NetworkNamespace
from tests.support.live_node import NODE, LiveNode
from tests.support.traffic import attempt, serve

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd66::/64"}]]}


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_pods_get_addresses_and_policy_without_pod_cidrs(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], backend: Backend
) -> None:
    with LiveNode(tmp_path, backend, make_netns) as node:
        addresses = [{"type": "InternalIP", "address": address} for address in NODE.values()]
        meta = {"name": "n1", "uid": "uid-n1"}
        node.api.put(NODES, {"metadata": meta, "spec": {}, "status": {"addresses": addresses}})
        node.start()
        node.until_unready("no podCIDRs yet")
        plugin = {"type": "felix-py-cni", "ipam": {**IPAM, "dataDir": str(tmp_path / "host-local")}}
        shutil.copy(STANDARD_PLUGINS / "host-local", tmp_path / "bin")
        network = {"cniVersion": "1.0.0", "name": "mine", "plugins": [plugin]}
        (tmp_path / "net.d/05-mine.conflist").write_text(json.dumps(network))
        node.ready()
        node.allow("db", {"app": "db"}, {"app": "web"})
        for name in ("web", "db", "other"):
            node.add_pod(name, app=name)
        held = node.addresses
        assert held["web"] == {Family.V4: "10.66.0.2", Family.V6: "fd66::2"}
        tries = {
            Packet(held[name][family], held["db"][family], Protocol.TCP, 80): name
            for name in ("web", "other")
            for family in Family
        }
        with serve([(node.places["db"], address, Protocol.TCP, 80) for address in held["db"].values()]):
            got = [tries[packet] for packet in attempt([(node.places[n], p) for p, n in tries.items()], 2)]
        assert got == ["web", "web"]
        node.delete_pod("web")
        assert not (tmp_path / "host-local/mine/10.66.0.2").exists()
