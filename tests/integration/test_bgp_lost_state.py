"""What an agent keeps of BGP is lost, or cannot be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.test_bgp_declared import bird_config
from tests.support import faults
from tests.support.agent_process import POD_CIDR
from tests.support.bgp import NODE_ASN, link
from tests.support.bird import Bird
from tests.support.declared_agent import DeclaredAgent, declared_agent
from tests.support.fakeapi import BGP_CONFIGURATIONS, BGP_FILTERS, BGP_PEERS
from tests.support.isolate import NetworkNamespace

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


@pytest.fixture
def tor(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[Bird]:
    router = make_netns("tor0")
    link(router)
    found = Bird(router, tmp_path / "bird", bird_config(0))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[DeclaredAgent]:
    """With a peer declared."""
    with declared_agent(tmp_path) as agent:
        agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False)
        agent.peer(0)
        yield agent


def test_peers_go_that_were_deleted_while_no_agent_ran(agent: DeclaredAgent, tor: Bird) -> None:
    """Nor does its copy know them any more, and the API server is late with BGP's kinds."""
    agent.start()
    agent.until(lambda: POD_CIDR in tor.routes("node"), "up")
    agent.stop()
    (agent.folder / "lib/bgp.json").unlink()
    agent.api.delete(BGP_PEERS, "", "tor0")
    agent.api.delete(BGP_CONFIGURATIONS, "", "default")
    for path in (BGP_PEERS, BGP_CONFIGURATIONS, BGP_FILTERS):
        agent.api.fault("*", faults.refuse(503), path=path, times=1000)
    agent.start()
    agent.wait_ready()  # it has waited for them, in vain
    assert POD_CIDR in tor.routes("node")
    agent.api.clear_faults()
    agent.until(lambda: not tor.routes("node") and not tor.established("node"), "gone")


def test_a_copy_that_could_not_be_written_is_written_later(agent: DeclaredAgent, tor: Bird) -> None:
    copy = agent.folder / "lib/bgp.json"
    copy.mkdir(parents=True)
    agent.start()
    agent.until(lambda: tor.established("node"), "up")
    agent.until(lambda: "copy" in agent.notices(), "told")
    copy.rmdir()
    agent.until(lambda: copy.is_file() and agent.notices() == {}, "written, and told no more")
