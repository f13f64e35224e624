"""Whatever of a lab dies is started again and goes on with what it had; what is left of one can be removed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab.build import Options
from lab.lab import Lab
from lab.namespaces import NETNS_DIR, delete_netns
from lab.processes import Process, marked, process_of
from lab.state import LabError, Shape
from tests.e2e.test_lab_command import belongings, felix
from tests.support.lab import LabUnderTest, example
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

_OWN = ("apiserver", "kubelet", "node1", "node2", "tor")
_PATIENCE = 60.0


def process(lab: Lab, name: str) -> Process:
    found = lab.processes()[name]
    assert found is not None
    return found


def kill(lab: Lab, *names: str) -> dict[str, Process]:
    """SIGKILL for programs of a lab; who they were. Gone, when this returns."""
    victims = {name: process(lab, name) for name in names}
    for victim in victims.values():
        os.kill(victim.pid, signal.SIGKILL)
    eventually(lambda: not any(victim.alive for victim in victims.values()))
    return victims


def wait_for_another(lab: Lab, name: str, before: Process) -> None:
    def another() -> bool:
        now = lab.processes()[name]
        return now is not None and now != before and now.alive

    eventually(another, _PATIENCE)


def pods(lab: LabUnderTest) -> dict[str, Any]:
    """Each pod's uid, node and addresses."""
    return {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}": (
            pod["metadata"]["uid"],
            pod["spec"]["nodeName"],
            pod["status"]["podIPs"],
        )
        for pod in lab.get("pods")["items"]
    }


@pytest.mark.parametrize("names", [["apiserver"], ["kubelet"], list(_OWN)], ids="+".join)
def test_what_dies_is_started_again_with_what_it_had(plain_lab: LabUnderTest, names: list[str]) -> None:
    lab = plain_lab.lab
    with plain_lab.applied("-f", example("20")):
        plain_lab.settle(patience=_PATIENCE)
        before, policies = pods(plain_lab), plain_lab.kubectl("get", "netpol", "-A", "-o", "name")
        others = {name: process(lab, name) for name in _OWN if name not in names}
        for name, victim in kill(lab, *names).items():
            wait_for_another(lab, name, victim)
        assert plain_lab.kubectl("get", "netpol", "-A", "-o", "name") == policies
        assert pods(plain_lab) == before
        plain_lab.settle(patience=_PATIENCE)
        for node in plain_lab.node_names:
            plain_lab.wait_ready(node)
        plain_lab.verified()
        assert others == {name: process(lab, name) for name in others}, "nothing else was touched"
        # And everything still follows what is written.
        plain_lab.kubectl("delete", "-f", example("20"))
        plain_lab.settle(patience=_PATIENCE)


def test_pods_that_come_and_go_while_no_kubelet_runs(plain_lab: LabUnderTest) -> None:
    """The kubelets' process is stopped meanwhile, so that nobody starts another."""
    lab = plain_lab.lab
    run = ["run", "-n", "dev", "--image=any", "--port=80", "--restart=Never"]
    plain_lab.kubectl(*run, "late")
    plain_lab.kubectl("wait", "-n", "dev", "--for=condition=Ready", "pod/late")
    netns = lab.pod_netns("dev/late")
    victim = process(lab, "kubelet")
    os.kill(victim.pid, signal.SIGSTOP)
    plain_lab.kubectl("delete", "pod", "-n", "dev", "late", "--force", "--grace-period=0")
    plain_lab.kubectl(*run, "early")
    kill(lab, "kubelet")
    wait_for_another(lab, "kubelet", victim)
    try:
        plain_lab.kubectl("wait", "-n", "dev", "--for=condition=Ready", "pod/early", "--timeout=60s")
        eventually(lambda: not netns.exists(), _PATIENCE)
        plain_lab.settle(patience=_PATIENCE)
        eventually(lambda: len(list(lab.state.sandboxes.glob("*.json"))) == len(pods(plain_lab)))
    finally:
        plain_lab.kubectl("delete", "pod", "-n", "dev", "early")


def test_agent_sidecar_exabgp_and_bird_come_back(plain_lab: LabUnderTest) -> None:
    for machine, program in (("node1", "agent"), ("node1", "bgp"), ("tor", "bird")):
        plain_lab.kill(machine, program)
    exabgp = process_of(plain_lab.exabgp_pid("node2"))
    os.kill(exabgp.pid, signal.SIGKILL)
    eventually(lambda: not exabgp.alive)
    plain_lab.wait_ready("node1")

    def sessions() -> bool:
        told = plain_lab.sh("tor", "birdc", "show", "protocols")
        return told.count("Established") == len(plain_lab.nodes)

    eventually(sessions, _PATIENCE)
    plain_lab.settle(patience=_PATIENCE)


def test_up_starts_again_what_died_with_the_keeper(plain_lab: LabUnderTest) -> None:
    """And nothing else: no pod, no namespace, no program that ran is another one."""
    lab = plain_lab.lab
    before = pods(plain_lab)
    untouched = {name: process(lab, name) for name in ("tor", "node1", "kubelet")}
    kill(lab, "keeper")
    kill(lab, "apiserver", "node2")
    root, name = lab.state.root, lab.name
    status = felix("status", "--name", name, folder=root, check=False)
    assert status.returncode == 1
    up = felix("up", "--name", name, folder=root)
    assert "starting again: keeper, apiserver, node2" in up.stderr
    assert untouched == {name: process(lab, name) for name in untouched}
    assert pods(plain_lab) == before
    plain_lab.settle(patience=_PATIENCE)
    assert "is up already" in felix("up", "--name", name, folder=root).stdout
    # The new keeper also keeps what it did not start itself.
    for name, victim in kill(lab, "kubelet", "tor").items():
        wait_for_another(lab, name, victim)
    plain_lab.settle(patience=_PATIENCE)


def test_killed_machine_takes_its_programs_along(plain_lab: LabUnderTest) -> None:
    programs = [process_of(program.pid) for program in plain_lab.lab.programs("node1").values()]
    wait_for_another(plain_lab.lab, "node1", kill(plain_lab.lab, "node1")["node1"])
    eventually(lambda: not any(program.alive for program in programs))
    plain_lab.wait_ready("node1")


def test_up_never_changes_the_shape_of_a_lab_that_is_there(folder: Path) -> None:
    """Not when things have died, and not when its network is gone and it has to be made anew."""
    up = ["up", "--name", "shape", "--nodes", "1", "--no-pods"]
    felix(*up, folder=folder)
    lab = Lab("shape", folder)
    kill(lab, "keeper")
    kill(lab, "apiserver", "node1", "tor", "kubelet")
    other = felix("up", "--name", "shape", "--ipv6", folder=folder, check=False)
    assert other.returncode == 1
    assert "is there already with 1 node, IPv4" in other.stderr
    felix("up", "--name", "shape", folder=folder)
    assert lab.node_names() == ["node1"]
    kill(lab, "keeper")
    delete_netns(NETNS_DIR / "felix-shape-node1")
    anew = felix("up", "--name", "shape", "--no-pods", folder=folder)
    assert "starting anew: the network of node1 is gone" in anew.stderr
    assert lab.node_names() == ["node1"]
    felix("down", "--name", "shape", folder=folder)
    assert not belongings("shape", folder)


def test_down_leaves_no_process_although_the_folder_is_gone(folder: Path) -> None:
    """What runs is removed, also what people have started on a machine; `up` does not build on top of it."""
    felix("up", "--name", "gone", "--nodes", "1", folder=folder)
    lab = Lab("gone", folder)
    guest = subprocess.Popen([*lab.enter("node1"), "sleep", "1000"])
    eventually(lambda: Path(f"/proc/{guest.pid}/comm").read_text() == "sleep\n")
    shutil.rmtree(folder)
    up = felix("up", "--name", "gone", folder=folder, check=False)
    assert up.returncode == 1
    status = felix("status", "--name", "gone", folder=folder, check=False)
    for said in (up, status):
        assert "lab.json is gone; `felix-py lab down` removes what is left" in said.stderr
    assert marked(lab.state.path)
    felix("down", "--all", folder=folder)
    assert guest.wait(10) == -signal.SIGTERM
    assert not marked(lab.state.path)
    assert not belongings("gone", folder)


def test_lab_of_the_same_name_elsewhere_is_left_alone(folder: Path, tmp_path: Path) -> None:
    """Its network namespaces have the same names."""
    felix("up", "--name", "twin", "--nodes", "1", "--no-pods", folder=folder)
    elsewhere = tmp_path / "elsewhere"
    for command in ("up", "down"):
        done = felix(command, "--name", "twin", folder=elsewhere, check=False)
        assert done.returncode == 1
        assert f"lab 'twin' is there with --state-root {folder}" in done.stderr
    assert not elsewhere.exists()
    felix("status", "--name", "twin", folder=folder)


def test_down_that_was_interrupted_leaves_no_lab(folder: Path) -> None:
    """What is left is made anew by the next up, not started again."""
    felix("up", "--name", "half", "--nodes", "1", "--no-pods", folder=folder)
    lab = Lab("half", folder)
    program = (
        "import os, sys, pathlib, lab.lab as it\n"
        "it.remove_namespaces = lambda _name: os._exit(9)\n"
        "it.Lab('half', pathlib.Path(sys.argv[1])).down()\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(folder)], check=False).returncode == 9
    assert not marked(lab.state.path)
    up = felix("up", "--name", "half", "--no-pods", folder=folder)
    assert "an earlier `lab up` or `lab down` did not finish" in up.stderr
    felix("status", "--name", "half", folder=folder)


def test_failed_up_of_a_lab_that_is_there_removes_nothing(plain_lab: LabUnderTest) -> None:
    other = Options(Shape(3, (4,), "nft"))
    with pytest.raises(LabError, match="is there already"):
        plain_lab.lab.up(other)
    plain_lab.settle(patience=_PATIENCE)
