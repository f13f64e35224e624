"""``felix-py cleanup`` after an agent's life: the node is as it was before, and nobody else has lost anything."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from felix_py.dataplane.service_drops import ServiceDrops
from felix_py.layout import ROUTE_PROTOCOL_LEARNED
from felix_py.records import Backend
from policy.model import Family
from tests.support import kernel_state
from tests.support.isolate import NetworkNamespace, run
from tests.support.live_node import GATEWAY, LiveNode

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

MakeNetns = Callable[[str], NetworkNamespace]
FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
FOLDERS = ("bin", "net.d", "state", "run")
DAEMONSETS = "/apis/apps/v1/namespaces/kube-system/daemonsets"
UNLESS = ("--unless-daemonset", "kube-system/felix-py")


class Removal:
    """A node with things of others on it, an agent that has lived there, and cleanup."""

    def __init__(self, node: LiveNode) -> None:
        self.node = node
        self.api = node.api
        self.folder = node.folder
        self.api.serve(DAEMONSETS)

    def of_others(self) -> None:
        """Rules, sets, routes, a link and files that are not ours."""
        for family in Family:
            number = int(family)
            tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{self.node.backend}"
            run(tool, "-N", "OTHERS")
            run(tool, "-A", "OTHERS", "-p", "tcp", "--dport", "4242", "-j", "RETURN")
            run(tool, "-I", "FORWARD", "-j", "OTHERS")
            net = "198.18.0.0/24" if family is Family.V4 else "2001:db8:77::/64"
            run("ip", f"-{number}", "route", "add", net, "via", GATEWAY[family], "proto", "static")
        run("ip", "rule", "add", "pref", "100", "to", "198.18.0.0/24", "lookup", "main")
        run("ipset", "create", "others", "hash:ip")
        run("ipset", "add", "others", "198.18.0.1")
        run("ip", "link", "add", "others0", "type", "veth", "peer", "name", "others1")
        for name, file in (("bin", "portmap"), ("net.d", "87-others.conflist")):
            (self.folder / name).mkdir(exist_ok=True)
            (self.folder / name / file).write_text("others'")

    def live(self) -> None:
        """The agent starts, connects pods under a policy, and is killed; a router has taught it a route."""
        peers = self.folder / "bgp.yaml"
        peers.write_text("asNumber: 65001\npeers: [{peerIP: 192.0.2.9, asNumber: 65000}]\n")
        self.node.allow("db", {"app": "db"}, {"app": "web"})
        self.node.start("--bgp-config", str(peers))
        self.node.ready()
        for name in ("web", "db"):
            self.node.add_pod(name, app=name)
        self.node.kill()
        learned = ["10.99.0.0/24", "via", GATEWAY[Family.V4], "proto", str(ROUTE_PROTOCOL_LEARNED)]
        run("ip", "route", "add", *learned)
        ServiceDrops(tuple(Family)).apply(["10.96.0.0/12", "fd00:96::/112"])
        # What calls and writes that were cut off have left.
        (self.folder / "run" / "spool").mkdir(exist_ok=True)
        (self.folder / "run" / "spool" / "1-2").write_text("{}")
        (self.folder / "state" / "leases.db.damaged-1").touch()
        (self.folder / "bin" / ".felix-py-cni.abc").touch()
        (self.folder / "net.d" / ".10-felix-py.conflist.abc").touch()

    def files(self) -> dict[str, str]:
        """Every file and folder of the node's four."""
        places = [path for name in FOLDERS for path in [self.folder / name, *(self.folder / name).rglob("*")]]
        return {
            str(path.relative_to(self.folder)): path.read_text(errors="replace") if path.is_file() else ""
            for path in places
            if path.exists()
        }

    def state(self) -> dict[str, object]:
        """Files, and all of the kernel but what a table is created with."""
        assert self.node.backend is not None
        kernel = kernel_state.everything(self.node.backend)
        empty = re.compile(r"^(\*\w+|:[A-Z]+ ACCEPT \[0:0\]|COMMIT)\n?", re.MULTILINE)
        rules = {name: empty.sub("", str(text)) for name, text in kernel.items() if name.startswith("rules")}
        links = sorted(re.findall(r"^\d+: ([^:@]+)", run("ip", "-o", "link"), re.MULTILINE))
        policy = [run("ip", f"-{int(family)}", "rule") for family in Family]
        return {**kernel, **rules, "links": links, "policy": policy, "files": self.files()}

    def cleanup(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the command on the node."""
        return subprocess.run(self.argv(*options), capture_output=True, text=True, check=False)

    def argv(self, *options: str) -> list[str]:
        """The command with this node's folders."""
        folders = {"cni-bin-dir": "bin", "cni-conf-dir": "net.d", "state-dir": "state", "run-dir": "run"}
        argv = [FELIX_PY, "cleanup", *options, "--kubeconfig", str(self.node.kubeconfig)]
        for option, name in folders.items():
            argv += [f"--{option}", str(self.folder / name)]
        return argv

    def start_cleanup(self, *options: str) -> subprocess.Popen[str]:
        """Likewise, while something else happens; what it says on standard error is piped."""
        return subprocess.Popen(self.argv(*options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def refused(self, *options: str) -> str:
        """What it says, having changed nothing."""
        before = self.state()
        done = self.cleanup(*options)
        assert (done.returncode, done.stdout) == (1, "")
        assert self.state() == before
        (line,) = done.stderr.splitlines()
        return line


@pytest.fixture(params=list(Backend), ids=str)
def removal(request: pytest.FixtureRequest, tmp_path: Path, make_netns: MakeNetns) -> Iterator[Removal]:
    with LiveNode(tmp_path, Backend(request.param), make_netns) as node:
        for file in (tmp_path / "bin").iterdir():
            file.unlink()
        yield Removal(node)


def with_client(removal: Removal) -> None:
    done = subprocess.run(
        [FELIX_PY, "install-cni", "--cni-bin-dir", str(removal.folder / "bin")],
        env={"FELIX_PY_CNI_SOCKET": str(removal.folder / "run/cni.sock")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_node_is_as_before(removal: Removal) -> None:
    removal.of_others()
    before = removal.state()
    with_client(removal)
    removal.live()
    lived = removal.state()
    assert all(lived[part] != before[part] for part in ("sets", "rules4", "rules6", "routes4", "links", "files"))

    listed = removal.cleanup("--everything", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert removal.state() == lived, "it was only to list"
    for name in set(removal.files()) - set(before["files"]):  # type: ignore[call-overload]
        places = [Path(name), *Path(name).parents]
        assert any(f" {removal.folder / place}\n" in listed.stdout for place in places), f"{name} is not listed"
    assert "others" not in listed.stdout.lower()

    done = removal.cleanup("--everything", *UNLESS)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(listed.stdout.splitlines())
    assert removal.state() == before
    again = removal.cleanup("--everything", *UNLESS)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "0 objects were removed\n")


@pytest.mark.parametrize(
    "removal", [Backend.NFT, pytest.param(Backend.LEGACY, marks=pytest.mark.heavy)], ids=str, indirect=True
)
def test_killed_at_any_moment_it_can_be_repeated(removal: Removal) -> None:
    removal.of_others()
    before = removal.state()
    with_client(removal)
    removal.live()
    for moment in (0.2, 0.5, 0.8, 1.1, 1.4, 1.7):
        with removal.start_cleanup("--everything") as going:
            with suppress(subprocess.TimeoutExpired):
                going.wait(moment)
            going.kill()
    assert removal.cleanup("--everything").returncode == 0
    assert removal.state() == before


def test_leases_and_client_stay_for_a_pause(removal: Removal) -> None:
    with_client(removal)
    removal.live()
    before = removal.files()
    assert removal.cleanup().returncode == 0
    gone = before.keys() - removal.files().keys()
    assert gone == {"net.d/10-felix-py.conflist", "net.d/.10-felix-py.conflist.abc"}
    assert not run("ipset", "list", "-name").split()


def test_folder_with_files_of_others_stays(removal: Removal) -> None:
    with_client(removal)
    removal.live()
    for name in ("state", "run"):
        (removal.folder / name / "notes").write_text("somebody's")
    assert removal.cleanup("--everything").returncode == 0
    assert {name for name in removal.files() if name.startswith(("state", "run"))} == {
        "state",
        "state/notes",
        "run",
        "run/notes",
    }


def test_not_while_an_agent_or_its_daemonset_is_there(removal: Removal) -> None:
    with_client(removal)
    removal.live()
    with closing(socket.socket(socket.AF_UNIX)) as agent:
        (removal.folder / "run" / "cni.sock").unlink()
        agent.bind(str(removal.folder / "run" / "cni.sock"))
        agent.listen()
        assert "an agent is running here" in removal.refused("--everything", *UNLESS)

    removal.api.put(DAEMONSETS, {"metadata": {"name": "felix-py"}})
    told = "DaemonSet kube-system/felix-py is still there and would bring all back; delete it first"
    assert removal.refused("--everything", *UNLESS) == f"felix-py cleanup: {told}"
    removal.api.delete(DAEMONSETS, "", "felix-py")
    # A server that is just starting knows no paths yet, and says so without a Status. Others refuse, or are gone.
    path = f"{DAEMONSETS}/felix-py"
    removal.api.fault("*", lambda exchange: exchange.send(404, {}) or True, path=path)
    assert "cannot be known: 404" in removal.refused(*UNLESS)
    removal.api.fault("*", lambda exchange: exchange.refuse(403, "Forbidden", "no right") or True, path=path)
    assert "cannot be known: 403 Forbidden: no right" in removal.refused(*UNLESS)
    removal.api.refuse()
    assert "cannot be known" in removal.refused(*UNLESS)
    removal.api.listen()
    assert removal.cleanup("--everything", *UNLESS).returncode == 0
    assert not [name for name in removal.files() if "leases" in name]


def test_waiting_for_the_end_of_both(removal: Removal) -> None:
    """First the DaemonSet goes, then, a moment later, its agent."""
    with_client(removal)
    removal.live()
    lived = removal.state()
    path = f"{DAEMONSETS}/felix-py"
    removal.api.put(DAEMONSETS, {"metadata": {"name": "felix-py"}})
    (removal.folder / "run" / "cni.sock").unlink()
    with closing(socket.socket(socket.AF_UNIX)) as agent:
        agent.bind(str(removal.folder / "run" / "cni.sock"))
        agent.listen()
        with removal.start_cleanup("--everything", *UNLESS, "--wait", "120") as going:
            assert going.stderr is not None
            assert "waiting: DaemonSet kube-system/felix-py is still there" in going.stderr.readline()
            removal.api.delete(DAEMONSETS, "", "felix-py")
            assert "waiting: an agent is running here" in going.stderr.readline()
            assert {**removal.state(), "files": 0} == {**lived, "files": 0}
            agent.close()
            assert going.wait(60) == 0, going.stderr.read()
    assert not [name for name in removal.files() if "leases" in name]
    assert removal.api.verbs(path), "it has asked"


def test_daemonset_that_is_no_name(removal: Removal) -> None:
    for wrong in ("felix-py", "/felix-py", "kube-system/", "a/b/c"):
        done = removal.cleanup("--unless-daemonset", wrong)
        assert (done.returncode, "not NAMESPACE/NAME" in done.stderr) == (2, True)
