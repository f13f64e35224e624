"""A family is switched off on a node that has both: ours of it go, and pods can send nothing of it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from felix_py.agent.families import Families
from felix_py.config import ConfigError
from felix_py.dataplane import sysctl
from felix_py.records import Backend
from policy.model import Family
from tests.support import kernel_state
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import NODE, POLICY, PolicedNode
from tests.support.node_program import IN_TURN
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]


@pytest.fixture(params=list(Backend))
def node(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], request: pytest.FixtureRequest
) -> Iterator[PolicedNode]:
    """It has run with both families."""
    with PolicedNode(tmp_path, Backend(request.param), make_netns) as made:
        made.prepare()
        yield made


def ours(family: Family, backend: Backend) -> list[str]:
    saved = kernel_state.saved(family, backend).splitlines()
    return [line for line in saved if "FELIX-" in line or "felix:" in line]


def sets_of(family: Family) -> list[str]:
    return [name for name in kernel_state.sets() if name.startswith(f"felix{int(family)}-")]


def routes_of(family: Family) -> list[str]:
    return [line for line in kernel_state.routes(family) if "proto 88" in line or "blackhole" in line]


def everything(family: Family, backend: Backend) -> tuple[list[str], list[str], list[str]]:
    return sorted(ours(family, backend)), sorted(sets_of(family)), routes_of(family)


def option(*families: Family) -> str:
    return "--ip-families=" + ",".join(f"ipv{int(family)}" for family in families)


def heard(node: PolicedNode, family: Family) -> bool:
    """Whether the node gets what the pod web sends to it, by an address from before; nobody need answer."""
    kind = socket.AF_INET if family is Family.V4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as here:
        here.bind((NODE[family], 5353))
        here.settimeout(0.5)
        with node.places["web"].enter(), socket.socket(kind, socket.SOCK_DGRAM) as there:
            there.bind((node.addresses["web"][family], 0))
            there.sendto(b"?", (NODE[family], 5353))
        try:
            return here.recv(1) == b"?"
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    ("node", "on"),
    IN_TURN,
    ids=lambda value: f"ipv{int(value)} only" if isinstance(value, Family) else str(value),
    indirect=["node"],
)
def test_a_family_is_switched_off_and_on_again(node: PolicedNode, on: Family) -> None:
    (off,) = set(Family) - {on}
    assert node.backend is not None
    before = {family: everything(family, node.backend) for family in Family}
    assert all(all(parts) for parts in before.values())

    node.start(option(on))
    node.ready()
    assert everything(on, node.backend) == before[on]
    drops, sets, routes = everything(off, node.backend)
    assert (sets, routes) == ([], [])
    assert len(drops) == 2
    assert all(line.startswith("-A PREROUTING") and line.endswith("-j DROP") for line in drops)
    assert any("-i felix+" in line for line in drops)
    assert node.status()["configuration"]["families"] == [int(on)]
    assert f'"switched_off": [{int(off)}]' in node.log or f"switched_off=[{int(off)}]" in node.log
    assert (heard(node, on), heard(node, off)) == (True, False)

    node.add_pod("late", app="late")
    assert list(node.addresses["late"]) == [on]
    verify = [
        str(Path(sys.executable).with_name("felix-py")),
        "verify",
        "--kubeconfig",
        str(node.kubeconfig),
        "--state-dir",
        str(node.folder / "state"),
    ]
    verify += ["--agent-socket", str(node.folder / "run/agent.sock")]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    node.delete_pod("late")
    del node.places["late"], node.addresses["late"]

    node.kill()
    node.start()
    node.ready()
    assert {family: everything(family, node.backend) for family in Family} == before
    node.settled()
    assert node.reached() == POLICY


def test_somebody_who_opens_a_family_that_is_off_is_noticed(node: PolicedNode) -> None:
    node.start(option(Family.V4), "--refresh-interval=1")
    node.ready()
    assert node.backend is not None
    drops = ours(Family.V6, node.backend)
    run(f"ip6tables-{node.backend}", "-t", "raw", "-F", "PREROUTING")
    assert ours(Family.V6, node.backend) != drops
    assert drops
    eventually(lambda: ours(Family.V6, node.backend or Backend.NFT) == drops, 20)


def test_a_family_that_the_kernel_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "available_families", lambda: (Family.V4,))
    with pytest.raises(ConfigError, match=r"--ip-families ipv4,ipv6: this kernel has no IPv6: built without it"):
        Families.of_this_node((Family.V4, Family.V6))
    assert Families.of_this_node(()) == Families((Family.V4,), ())
