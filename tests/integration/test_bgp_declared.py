"""BGP declared in the API: the real agent and ExaBGP, two BIRDs as witnesses, a stand-in for the API server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import fakeapi
from tests.support.agent_process import POD_CIDR
from tests.support.bgp import NODE_ASN, TOR_ASN, link
from tests.support.bird import Bird
from tests.support.declared_agent import SECRET, DeclaredAgent, declared_agent
from tests.support.fakeapi import BGP_CONFIGURATIONS, BGP_FILTERS, BGP_PEERS, SECRETS
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


def bird_config(index: int, password: str = "") -> str:
    net = 9 + index
    return f"""
    router id 10.{net}.0.2;
    protocol device {{ }}
    protocol bgp node {{
      local as {TOR_ASN}; neighbor 10.{net}.0.1 as {NODE_ASN};
      {f'password "{password}";' if password else ""}
      hold time 90; connect delay time 1; error wait time 1, 2; graceful restart on;
      ipv4 {{ import all; export none; }};
    }}
    """


@pytest.fixture
def tors(tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]) -> Iterator[list[Bird]]:
    with ExitStack() as stack:
        birds = []
        for index in (0, 1):
            router = make_netns(f"tor{index}")
            link(router, index)
            birds.append(stack.enter_context(Bird(router, tmp_path / f"bird{index}", bird_config(index))))
        yield birds


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[DeclaredAgent]:
    with declared_agent(tmp_path) as agent:
        yield agent


def test_a_cluster_is_declared_and_what_is_wrong_ends_no_session(agent: DeclaredAgent, tors: list[Bird]) -> None:
    agent.start()
    agent.wait_ready()
    assert not (agent.run_dir / "bgp" / "exabgp.conf").exists(), "nothing is declared"
    agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False)
    agent.peer(0)
    agent.peer(1)
    for tor in tors:
        agent.until(lambda tor=tor: tor.established("node") and POD_CIDR in tor.routes("node"), "up")  # type: ignore[misc]
    steady = tors[1].since("node")

    agent.secret(tor0="first")
    agent.peer(0, password={"secretKeyRef": {"name": SECRET, "key": "tor0"}})
    for password in ("first", "second"):
        agent.secret(tor0=password)
        tors[0].write(bird_config(0, password))
        tors[0].birdc("configure")
        conf = agent.run_dir / "bgp" / "exabgp-running.conf"
        agent.until(lambda: f'"{password}"' in conf.read_text(), "the new password runs")  # noqa: B023
        agent.until(lambda: tors[0].established("node"), "up with a password")

    before = tors[0].since("node")
    agent.api.delete(SECRETS, "kube-system", SECRET)
    agent.peer(0, asNumber=0)
    agent.until(lambda: {"BGPPeer tor0", f"Secret {SECRET}"} <= agent.notices().keys(), "what is wrong is told")
    assert agent.notices()["BGPPeer tor0"].endswith("stays in force")
    agent.until(
        lambda: any("tor0" in str(event["involvedObject"]) for event in agent.api.events.values()), "Event"
    )
    agent.restart()
    agent.until(lambda: {"BGPPeer tor0", f"Secret {SECRET}"} <= agent.notices().keys(), "told again")
    agent.until(lambda: len([one for one in agent.status()["peers"] if one["established"]]) == 2, "both known")
    assert tors[0].since("node") == before
    assert tors[1].since("node") == steady

    agent.api.delete(BGP_PEERS, "", "tor0")
    agent.until(lambda: not tors[0].established("node") and not tors[0].routes("node"), "gone at tor0")
    assert POD_CIDR in tors[1].routes("node")
    assert tors[1].since("node") == steady
    assert agent.notices() == {}
    for path, name in ((BGP_PEERS, "tor1"), (BGP_CONFIGURATIONS, "default")):
        agent.api.delete(path, "", name)
    agent.until(lambda: not tors[1].established("node") and not tors[1].routes("node"), "gone at tor1")


LEARNED = "10.244.7.0/24"


class Trace:
    """``felix-py bgp trace --json``."""

    def __init__(self, agent: DeclaredAgent, about: str) -> None:
        place = str(agent.run_dir / "agent.sock")
        argv = ["felix-py", "bgp", "trace", "--json", "--agent-socket", place, about]
        program = f"import sys; from felix_py.cli import main; sys.argv[:] = {argv!r}; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-uc", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout
        os.set_blocking(self.process.stdout.fileno(), False)
        self._read = b""

    def told(self, kind: str, **about: str) -> bool:
        """Whether there is such an event that was not there at the last call."""
        assert self.process.stdout
        self._read += self.process.stdout.read() or b""
        *lines, self._read = self._read.split(b"\n")
        return any({"kind": kind, **about}.items() <= json.loads(line).items() for line in lines)

    def ended(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said.decode()


def kernel_routes() -> list[tuple[str, int]]:
    """Prefix and metric of the learned routes in the kernel."""
    shown = json.loads(run("ip", "-j", "route", "show", "proto", "89") or "[]")
    return [(route["dst"], route.get("metric", 0)) for route in shown]


def test_the_priority_of_a_filter_is_the_metric_of_the_kernels_route(
    agent: DeclaredAgent, tors: list[Bird]
) -> None:
    told = bird_config(0).replace("export none", "next hop self; export where source = RTS_STATIC")
    tors[0].write(f"{told} protocol static {{ ipv4; route {LEARNED} blackhole; }}")
    tors[0].birdc("configure")
    agent.options = ["--cluster-cidr=10.244.0.0/16"]
    agent.start()
    agent.wait_ready()
    agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False)
    agent.peer(0)
    agent.until(lambda: kernel_routes() == [(LEARNED, 0)], "no metric of its own")

    def metric(priority: int) -> bool:
        rule = {"action": "Accept", "operations": [{"setPriority": {"value": priority}}]}
        agent.declare(BGP_FILTERS, "metric", importV4=[rule])
        agent.until(lambda: kernel_routes() == [(LEARNED, priority)], "the filter's")
        assert agent.status()["routeMetrics"] == {LEARNED: priority}
        return trace.told("best", prefix=LEARNED)

    trace = Trace(agent, LEARNED)
    agent.declare(BGP_FILTERS, "metric")
    agent.peer(0, filters=["metric"])
    agent.until(lambda: [metric(512), metric(77), metric(2000)][-1], "live")
    agent.restart()
    assert trace.ended() == (1, "felix-py bgp: the agent has ended\n")
    agent.until(lambda: LEARNED in agent.status()["routeMetrics"], "known again")
    assert kernel_routes() == [(LEARNED, 2000)]

    def ignoring(*names: str) -> None:
        fields = {"asNumber": NODE_ASN, "nodeToNodeMeshEnabled": False, "ignoredInterfaces": list(names)}
        agent.declare(BGP_CONFIGURATIONS, "default", **fields)

    ignoring("tor*")
    agent.until(lambda: not kernel_routes(), "no next hop is sought there")
    ignoring("eth*")
    agent.until(lambda: kernel_routes() == [(LEARNED, 2000)], "it is elsewhere")
    trace = Trace(agent, "10.9.0.2")
    agent.until(lambda: tors[0].birdc("restart", "node") and trace.told("session", peer="10.9.0.2"), "live")
    trace.process.send_signal(signal.SIGINT)
    assert trace.ended() == (0, "")
    agent.api.delete(BGP_PEERS, "", "tor0")
    agent.until(lambda: not kernel_routes(), "gone with the peer")


def test_a_peer_over_its_limit_is_held_down_through_restarts(agent: DeclaredAgent, tors: list[Bird]) -> None:
    told = bird_config(0).replace("export none", "next hop self; export where source = RTS_STATIC")
    tors[0].write(f"{told} protocol static {{ ipv4; route {LEARNED} blackhole; route 10.244.8.0/24 blackhole; }}")
    tors[0].birdc("configure")
    agent.options = ["--cluster-cidr=10.244.0.0/16"]
    agent.start()
    agent.wait_ready()
    agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN, nodeToNodeMeshEnabled=False)
    agent.peer(1)
    agent.peer(0, prefixLimit=1)

    def states() -> dict[str, str]:
        return {one["name"]: one["prefixLimitState"] for one in agent.status()["peers"]}

    held = {"tor0": "held-down", "tor1": "within"}
    agent.until(lambda: states() == held, "over its limit")
    agent.until(lambda: not kernel_routes() and not tors[0].established("node"), "its routes are gone")
    for _ in range(2):
        agent.restart()
        agent.until(lambda: states() == held, "still held down")
        agent.until(lambda: tors[1].established("node"), "the other is up")
        assert not tors[0].established("node")
    agent.peer(0, prefixLimit=2)
    agent.until(lambda: len(kernel_routes()) == 2, "a new limit ends it")
    agent.until(lambda: states() == {"tor0": "near", "tor1": "within"}, "and is near")


def test_a_node_with_a_file_has_its_peers_from_there(
    agent: DeclaredAgent, tors: list[Bird], tmp_path: Path
) -> None:
    file = tmp_path / "bgp.yaml"
    file.write_text(f"asNumber: {NODE_ASN}\npeers: [{{peerIP: 10.9.0.2, asNumber: {TOR_ASN}}}]\n")
    agent.options = [f"--bgp-config={file}"]
    agent.declare(BGP_CONFIGURATIONS, "default", asNumber=NODE_ASN)
    agent.peer(1)
    agent.start()
    agent.wait_ready()
    agent.until(lambda: tors[0].established("node"), "the file's peer is up")
    agent.until(lambda: "file" in agent.notices(), "refused with a sentence")
    assert (
        f"this node has its BGP peers in {file}, so BGPConfiguration default, BGPPeer tor1"
        in agent.notices()["file"]
    )
    assert [one["address"] for one in agent.status()["peers"]] == ["10.9.0.2"]
    assert not tors[1].established("node")
    agent.api.delete(BGP_PEERS, "", "tor1")
    agent.api.delete(BGP_CONFIGURATIONS, "", "default")
    agent.until(lambda: not agent.notices(), "nothing to refuse any more")
    assert fakeapi.SECRETS not in {request.path for request in agent.api.requests}
