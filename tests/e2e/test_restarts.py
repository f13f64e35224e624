"""Agent and ExaBGP die while packets flow: nobody notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lab.topology import TOR
from tests.support.lab import LabUnderTest, Requests, RouteMonitor, example
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

POLICIES = ("20", "21", "60")
"""In force while things restart. The flows from shop pass through a policy that isolates them."""

SERVERS = (("dev", "dns-1", 53, "shop"), ("dev", "builder-1", 514, "observability"))
"""UDP servers, and the namespace from which they are asked."""


def flows(lab: LabUnderTest) -> list[Requests]:
    """Flows of each family to each UDP server, from another node (and so through the router) where possible."""
    found = []
    for namespace, name, port, source in SERVERS:
        home = lab.node_of(namespace, name)
        pods = sorted(lab.get("pods", namespace=source)["items"], key=lambda pod: pod["spec"]["nodeName"] == home)
        netns = lab.lab.pod_netns(f"{source}/{pods[0]['metadata']['name']}")
        found += [Requests(netns, address, port) for address in lab.addresses(namespace, name).values()]
        assert source != "shop" or pods[0]["spec"]["nodeName"] != home
    return found


@contextmanager
def nobody_notices(lab: LabUnderTest) -> Iterator[None]:
    """Within: no packet is lost, the nodes' kernels do not change, no route of theirs or the router's goes."""
    lab.verified()
    log = lab.lab.state.machine(TOR) / "log" / "bird.log"
    logged = log.stat().st_size
    kernels = {node: lab.kernel(node) for node in lab.node_names}
    table = lab.bird_routes()
    assert len(table) == len(lab.nodes) * len(lab.families)
    with ExitStack() as stack:
        monitors = {name: stack.enter_context(RouteMonitor(lab, name)) for name in (TOR, *lab.node_names)}
        running = [stack.enter_context(flow) for flow in flows(lab)]
        eventually(lambda: all(len(flow.answered) > 20 for flow in running))
        yield
        sent = [flow.sent for flow in running]
        eventually(lambda: all(flow.sent > before + 50 for flow, before in zip(running, sent, strict=True)))
    routes = [f"{name} {event}" for name, monitor in monitors.items() for event in monitor.events[:20]]
    happened = "\n".join(["routes, and the router's log:", *routes, log.read_text()[logged:]])
    for flow in running:
        told = f"{flow.name}: {len(flow.lost)} of {flow.sent} lost, from {flow.lost[:3]} to {flow.lost[-3:]}"
        assert not flow.lost, f"{told}; {happened}"
        assert not flow.errors
    assert not any(monitor.withdrawn for monitor in monitors.values()), happened
    assert lab.bird_routes() == pytest.approx(table, abs=0.1)
    for node, kernel in kernels.items():
        for part, content in lab.kernel(node).items():
            assert content == kernel[part], f"{node}: {part} changed"


@pytest.fixture
def policies(lab: LabUnderTest) -> Iterator[None]:
    """Some policies are in force."""
    with lab.applied(*(word for number in POLICIES for word in ("-f", example(number)))):
        lab.settle()
        yield
    lab.settle()


@pytest.mark.usefixtures("policies")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_agent_restart_is_invisible(lab: LabUnderTest, number: signal.Signals) -> None:
    with nobody_notices(lab):
        for node in lab.node_names:
            lab.kill(node, "agent", number)
            lab.wait_ready(node)
            eventually(lambda: lab.metric(node, "felix_py_bgp_peers_established") == len(lab.families), 30)  # noqa: B023
    for node in lab.node_names:
        assert lab.metric(node, "felix_py_iptables_restores_total") == 0
    lab.settle()


@pytest.mark.usefixtures("policies")
def test_policy_changed_while_the_agent_was_away_is_in_force_after_its_start(lab: LabUnderTest) -> None:
    supervisors = [lab.lab.machine(node).pid for node in lab.node_names]
    for pid in supervisors:
        os.kill(pid, signal.SIGSTOP)
    try:
        for node in lab.node_names:
            os.kill(lab.lab.programs(node)["agent"].pid, signal.SIGKILL)
        lab.kubectl("delete", "-f", example("20"))
        lab.kubectl("apply", "-f", example("40"))
    finally:
        for pid in supervisors:
            os.kill(pid, signal.SIGCONT)
    try:
        lab.settle()
    finally:
        lab.kubectl("delete", "-f", example("40"))


def test_exabgp_killed_router_keeps_the_routes(lab: LabUnderTest) -> None:
    for node in lab.node_names:
        before = lab.exabgp_pid(node)
        with nobody_notices(lab):
            os.kill(before, signal.SIGKILL)
            eventually(lambda: lab.exabgp_pid(node) != before, 20)  # noqa: B023
            _wait_sessions(lab)


def test_sidecar_killed_router_keeps_the_routes(lab: LabUnderTest) -> None:
    node = lab.node_names[0]
    with nobody_notices(lab):
        lab.kill(node, "bgp")
        _wait_sessions(lab)


def _wait_sessions(lab: LabUnderTest) -> None:
    """Both ends say that all sessions are up, and graceful restart is over."""
    wanted = len(lab.nodes) * len(lab.families)

    def established() -> bool:
        shown = lab.sh(TOR, "birdc", "show", "protocols", "all")
        return shown.count("BGP state:          Established") == wanted and "graceful restart active" not in shown

    eventually(established, 30)
    for node in lab.node_names:
        eventually(lambda: lab.metric(node, "felix_py_bgp_peers_established") == len(lab.families), 30)  # noqa: B023
    # BIRD sweeps what was not announced again when end-of-RIB comes: that must not find anything.
    time.sleep(0.5)
