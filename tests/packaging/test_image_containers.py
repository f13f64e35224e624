"""Agent and sidecar in containers of the image, with exactly the rights that the DaemonSet gives them."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image.base import SIDECAR_ID
from tests.packaging.test_image import archive, built, root
from tests.support.bgp import NODE4, NODE_ASN, TOR4, TOR_ASN, link
from tests.support.bird import Bird
from tests.support.container import Archive
from tests.support.image_node import AGENT_CAPABILITIES, OTHER_CIDR, POD_CIDR, ImageNode
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.image, pytest.mark.usefixtures("netns")]
__all__ = ["archive", "built", "root"]

BGP = f"""
asNumber: {NODE_ASN}
routerID: {NODE4}
listenPort: 179
peers: [{{peerIP: {TOR4}, asNumber: {TOR_ASN}, passive: true, password: secret}}]
"""
TOR = f"""
router id {TOR4};
protocol device {{ }}
protocol static {{ ipv4; route {OTHER_CIDR} blackhole; }}
protocol bgp node {{
  local as {TOR_ASN}; neighbor {NODE4} as {NODE_ASN}; password "secret";
  connect delay time 1; connect retry time 1; graceful restart on;
  ipv4 {{ import all; export all; next hop self; }};
}}
"""
WITHOUT = {
    "NET_ADMIN": "cannot start",
    "NET_RAW": "unable to initialize table",
    "SYS_ADMIN": "found at the refresh only",
}
MakeNetns = Callable[[str], NetworkNamespace]


@pytest.fixture
def node(root: Path, archive: Archive, tmp_path: Path, make_netns: MakeNetns) -> Iterator[ImageNode]:
    link(make_netns("unused"))
    with ImageNode(root, archive, tmp_path) as made:
        made.install_client()
        yield made


def works(node: ImageNode, make_netns: MakeNetns) -> bool:
    """Policy is in force, and a pod is connected that the node reaches."""
    if not node.is_ready():
        return False
    pod = make_netns("pod")
    ips = node.add("web", pod.path).get("ips", [])
    return bool(ips) and "1 received" in run(
        "ping", "-c1", "-W5", ips[0]["address"].partition("/")[0], check=False
    )


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_agent_needs_no_more_than_three_capabilities(
    node: ImageNode, backend: str, make_netns: MakeNetns
) -> None:
    node.start_agent(backend)
    node.wait_ready()
    assert works(node, make_netns)
    assert node.stop("agent") == 0
    node.start_agent(backend)
    node.wait_ready()


@pytest.mark.parametrize("missing", AGENT_CAPABILITIES)
def test_agent_needs_each_of_them(node: ImageNode, missing: str, make_netns: MakeNetns) -> None:
    """On the legacy backend, whose tools need NET_RAW for their sockets."""
    node.start_agent("legacy", [one for one in AGENT_CAPABILITIES if one != missing])
    told = WITHOUT[missing]
    eventually(lambda: node.ended("agent") or node.is_ready() or told in node.log("agent"), 60)
    assert not works(node, make_netns)
    assert told in node.log("agent"), node.log("agent")


def test_sidecar_without_rights_listens_on_port_179(
    root: Path, archive: Archive, tmp_path: Path, make_netns: MakeNetns
) -> None:
    """Also with noNewPrivileges: what is permitted to the container stays so for a file that permits it."""
    router = make_netns("tor")
    link(router)
    bird = Bird(router, tmp_path / "bird", TOR)
    (tmp_path / "node").mkdir()
    with ImageNode(root, archive, tmp_path / "node", BGP) as node:
        node.start_sidecar()
        node.start_agent("nft")
        bird.start()
        try:
            node.wait_ready()
            eventually(lambda: bird.routes("node") == {POD_CIDR}, 60)
            eventually(lambda: OTHER_CIDR in run("ip", "route", "show", "proto", "89"), 30)
            folder = node.folder / "run/bgp"
            expected = {"exabgp.conf": (0, 0o640), "bridge.sock": (SIDECAR_ID, 0o660),
                        "exabgp-running.conf": (SIDECAR_ID, 0o600)}  # fmt: skip
            for name, (owner, mode) in expected.items():
                status = (folder / name).stat()
                assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (
                    owner,
                    SIDECAR_ID,
                    mode,
                ), name
            # Either may be replaced under the other.
            assert node.stop("bgp") == 0
            node.start_sidecar()
            eventually(lambda: bird.established("node"), 60)
            assert node.stop("agent") == 0
            node.start_agent("nft")
            node.wait_ready()
            assert bird.routes("node") == {POD_CIDR}
        finally:
            bird.stop()
