"""The machines that clusters of tests are made of (``tests/cluster/``): what ends with what, and what stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.processes import Process, process_of
from tests.cluster import cgroups
from tests.cluster.machine import CHECKOUT, CommandFailed, Machine
from tests.cluster.plan import OUTSIDE, TOR, Shape, address
from tests.support.waiting import eventually

pytestmark = pytest.mark.root

SHAPE = Shape(nodes=1, families=(4, 6))
HOLDER = """
import os, pathlib, sys, time
from tests.cluster.machine import Machine
from tests.cluster.plan import Shape
lifeline, held = os.pipe()
machine = Machine("tor", pathlib.Path(sys.argv[1]), Shape(), [], lifeline)
machine.boot(None)
machine.start("ticks", "sleep", "1000")
print("up", flush=True)
time.sleep(1000)
"""


class Rack:
    """A router, a host behind it and a node, without Kubernetes."""

    def __init__(self, folder: Path) -> None:
        self.machines = {name: Machine(name, folder / name, SHAPE, []) for name in (TOR, OUTSIDE, "node1")}
        self.tor, self.outside, self.node = self.machines.values()

    def boot(self) -> None:
        self.tor.boot(None)
        for machine in (self.outside, self.node):
            machine.boot(self.tor)

    def halt(self) -> None:
        for machine in self.machines.values():
            machine.halt()


@pytest.fixture
def make_rack(tmp_path: Path) -> Iterator[Callable[[str], Rack]]:
    with ExitStack() as stack:

        def make(name: str) -> Rack:
            (tmp_path / name).mkdir()
            rack = Rack(tmp_path / name)
            stack.callback(rack.halt)
            rack.boot()
            return rack

        yield make


def pings(machine: Machine, to: str) -> bool:
    try:
        machine.run("ping", "-n", "-c1", "-W5", to)
    except CommandFailed:
        return False
    return True


def service(machine: Machine, name: str) -> Process | None:
    """The service's program, which is a sleep(1), as the outside sees it; None: it does not run now."""
    (inside,) = machine.run("cat", f"/run/service/{name}.pid").split()
    init = (machine.folder / "pid").read_text().split()[0]
    found = subprocess.run(
        ["pgrep", "--ns", init, "--nslist", "pid", "sleep"], capture_output=True, text=True, check=False
    )
    for pid in found.stdout.split():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue  # it has ended meanwhile
        if status.split("NSpid:")[1].splitlines()[0].split()[-1] == inside:
            return process_of(int(pid))
    return None


def test_two_racks_side_by_side(make_rack: Callable[[str], Rack]) -> None:
    """The same names and addresses, and neither sees anything of the other or of us."""
    one, other = make_rack("one"), make_rack("other")
    for family in SHAPE.families:
        assert pings(one.outside, address("node1", family))
    other.node.net("ip", "link", "set", "eth0", "down")
    assert not pings(other.outside, address("node1", 4))
    assert pings(one.outside, address("node1", 4))
    one.node.run("touch", "/run/ours", "/etc/ours", "/var/lib/ours")
    for path in ("/run/ours", "/etc/ours", "/var/lib/ours"):
        assert not Path(path).exists()
        with pytest.raises(CommandFailed):
            other.node.run("cat", path)
    with pytest.raises(CommandFailed, match="Read-only"):
        one.node.run("touch", "/usr/ours")


def test_service_is_started_again_until_it_is_stopped(make_rack: Callable[[str], Rack]) -> None:
    node = make_rack("one").node
    node.start("ticks", "sleep", "1000")
    first = eventually(lambda: service(node, "ticks"))
    node.signal_service("ticks", signal.SIGKILL)
    second = eventually(lambda: (found := service(node, "ticks")) != first and found)
    assert "ticks has ended: 137" in node.log("ticks")
    node.stop("ticks")
    assert second
    assert not second.alive
    assert node.services() == []
    node.stop("ticks")


def test_reboot_keeps_the_disk_and_nothing_else(make_rack: Callable[[str], Rack]) -> None:
    rack = make_rack("one")
    rack.node.start("ticks", "sleep", "1000")
    ticks = eventually(lambda: service(rack.node, "ticks"))
    assert ticks
    rack.node.run("sh", "-c", "touch /run/lost; echo kept >/var/lib/kept; ip link add lost type veth")
    rack.node.halt()
    assert not ticks.alive
    assert not rack.node.running
    with pytest.raises(CommandFailed, match="does not run"):
        rack.node.run("true")
    rack.node.boot(rack.tor)
    assert rack.node.run("cat", "/var/lib/kept") == "kept\n"
    assert "lost" not in rack.node.run("sh", "-c", "ls /run; ip link")
    assert pings(rack.outside, address("node1", 4))


def test_machine_ends_with_its_holder_however_that_ends(tmp_path: Path) -> None:
    folder = tmp_path / "tor"
    argv = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        machine = Machine(TOR, folder, SHAPE, [])
        ticks = eventually(lambda: service(machine, "ticks"))
        assert ticks
        holder.send_signal(signal.SIGKILL)
    eventually(lambda: not machine.running and not ticks.alive)


def test_machine_that_cannot_start_says_why(tmp_path: Path) -> None:
    machine = Machine(TOR, tmp_path / "tor", SHAPE, [tmp_path / "missing"])
    with pytest.raises(CommandFailed, match=rf"did not start: mount --bind {tmp_path}/missing"):
        machine.boot(None)
    machine.halt()
    assert os.listdir(tmp_path / "tor" / "root" / "usr") == [], (
        "nothing of ours is mounted outside of the machine"
    )


def test_groups_of_a_run_that_was_killed_are_found() -> None:
    """By the process id in the cluster's name; those of a run that lives are left alone."""
    killed, living = (
        f"t{1 << 22}-{os.getpid()}",
        f"t{os.getpid()}-nft",
    )  # no process id is as high (proc_sys_kernel(5))
    try:
        for name in (killed, living):
            cgroups.make(name, "node1")
        assert killed in cgroups.left_behind()
        assert living not in cgroups.left_behind()
    finally:
        for name in (killed, living):
            cgroups.remove(name)
    assert killed not in cgroups.left_behind()
