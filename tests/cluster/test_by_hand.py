"""docs/by-hand.md, typed command by command on a node, from the rights to the last trace's end.

What a machine of the tests lacks is stood in for: a checkout after ``make`` for ``git clone`` and ``make``, a few
lines for systemd, another image for one of a registry.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from tests.cluster import snapshot
from tests.cluster.cluster import Cluster
from tests.cluster.images import BUSYBOX
from tests.cluster.installers import ByHand, Installer, copy_plugins, peers_file
from tests.cluster.machine import CHECKOUT, KEEP, STOP, CommandFailed, wait_for
from tests.cluster.node import Node
from tests.cluster.plan import Shape, address
from tests.cluster.typed import CHECKED_OUT, MANIFESTS, check_out, type_in
from tests.support.pages import commands, quoted

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

PAGE = "by-hand.md"
PEERS = "/etc/felix-py/bgp.yaml"

SYSTEMCTL = f"""\
#!/bin/sh
# Of systemd what the page needs: units with one ExecStart that are started, stopped and started again.
set -e
units=/etc/systemd/system
start() {{
  program=$(sed -n 's/^ExecStart=//p' $units/$1.service)
  [ -n "$program" ]
  setsid sh -c {shlex.quote(KEEP)} $1 $program >>/var/log/$1.log 2>&1 </dev/null &
}}
stop() {{ sh -c {shlex.quote(STOP)} $1; }}
action=$1
shift
case $action in
  daemon-reload) exit 0 ;;
  enable | disable) [ "$1" = --now ]; shift ;;
  restart) ;;
  *) echo "systemctl $action: not in here" >&2; exit 64 ;;
esac
for unit; do
  [ $action = enable ] || stop $unit
  [ $action = disable ] || start $unit
done
"""

JOURNALCTL = """\
#!/bin/sh
[ "$1" = -u ] && [ "$3" = -f ] || exit 64
exec tail -n +1 -f /var/log/$2.log
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node, without a network."""
    nothing = Installer()
    nothing.binds = [*ByHand().binds, MANIFESTS]
    folder = tmp_path_factory.mktemp("by-hand")
    cluster = Cluster(f"h{folder.stat().st_ino}", folder / "cluster", Shape(nodes=1), nothing)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


class Typing:
    """Types at the page's two prompts. On the node in root's home, then in the checkout."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._cluster = cluster
        self._node = node
        self.folder = "/root"
        for name, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
            node.machine.write(f"/root/bin/{name}", text, 0o755)
        node.machine.path("/etc/systemd/system").mkdir(parents=True, exist_ok=True)

    def at_node(self, command: str) -> str:
        """Raises CommandFailed as :func:`type_in`."""
        script = f'export PATH="/root/bin:$PATH" && cd {self.folder} && {command}'
        return self._node.machine.run("sh", "-c", script, timeout=200)

    def at_cluster(self, *lines: str) -> str:
        """In one shell, since lines use variables of earlier ones."""
        return type_in(self._cluster, "\n".join(line.replace("NODE", self._node.name) for line in lines))


def test_the_page(bare: Cluster) -> None:
    """Its sections in their order."""
    (node,) = bare.nodes
    check_out(bare, "")
    copy_plugins(node, "loopback")
    typing = Typing(bare, node)
    before = snapshot.of_node(node)
    rights(bare, node, typing)
    program(typing)
    node.machine.write(PEERS, peers_file(bare, address(node.name, 4)))
    for command in commands(PAGE, "node#", "4. Agent and sidecar as services"):
        typing.at_node(command)
    see_that_it_works(bare, node, typing)
    take_off(bare, node, typing)
    node.machine.run("rm", "-f", "/opt/cni/bin/portmap")  # a package's
    assert snapshot.differences(before, snapshot.of_node(node)) == []


def rights(cluster: Cluster, node: Node, typing: Typing) -> None:
    apply, *credentials = commands(PAGE, "cluster$", "1. Rights")
    typing.at_cluster(apply)
    secret = ["-n", "kube-system", "get", "secret", "felix-py-token", "-o", "jsonpath={.data.token}"]
    wait_for("the service account's token", lambda: cluster.kubectl(*secret), 60)
    typing.at_cluster(*credentials)
    made = cluster.machines["cp"].path(f"{CHECKED_OUT}/felix-py.kubeconfig").read_text()
    node.machine.write("/root/felix-py.kubeconfig", made)
    for command in commands(PAGE, "node#", "1. Rights"):
        typing.at_node(command)


def program(typing: Typing) -> None:
    clone, install, package, look, link = commands(PAGE, "node#", "2. The program")
    assert (clone.split()[0], package.split()[0]) == ("git", "apt-get")
    typing.at_node(f"ln -s {CHECKOUT} /opt/felix-py")
    typing.folder = "/opt/felix-py"
    typing.at_node(install)
    with pytest.raises(CommandFailed, match="portmap"):
        typing.at_node(look)
    typing.at_node(link)
    assert typing.at_node(look).strip() == "/opt/cni/bin/portmap"


def see_that_it_works(cluster: Cluster, node: Node, typing: Typing) -> None:
    ready, status, lists, own, learned = commands(PAGE, "node#", "5. See that it works")
    wait_for("the agent", lambda: typing.at_node(ready).startswith("ok"), 120)
    wait_for("the session", lambda: "1 of 1 peer established" in typing.at_node(status), 60)
    assert "10-felix-py.conflist" in typing.at_node(lists).split()
    cluster.wait_ready()
    (run,) = commands(PAGE, "cluster$", "5. See that it works")
    typing.at_cluster(run.replace("--image=busybox", f"--image={BUSYBOX}"))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/probe", "--timeout=120s", timeout=130)
    (cidr,) = cluster.pod_cidrs(node.name)
    routes = typing.at_node(own).splitlines()
    assert any(line.startswith(f"blackhole {cidr}") for line in routes), routes
    assert any("dev felix" in line for line in routes), routes
    typing.at_node(learned)


def take_off(cluster: Cluster, node: Node, typing: Typing) -> None:
    cluster.kubectl("delete", "pod", "probe", "--grace-period=0", "--force")  # nobody would make it again
    (drain,) = (span.removeprefix("cluster$ ") for span in quoted(PAGE, "cluster$"))
    typing.at_cluster(drain)
    peers = json.loads(node.machine.path(PEERS).read_text())
    node.machine.write(PEERS, json.dumps({**peers, "peers": []}))
    heading = "Taking it off again"
    restart, wait, disable, shown, cleanup, *files = commands(PAGE, "node#", heading)
    for command in (restart, wait, disable):
        typing.at_node(command)
    assert "felix" in typing.at_node(shown)
    typing.at_node(cleanup)
    for command in files:
        typing.folder = "/root"  # the checkout goes, too
        typing.at_node(command)
    assert not node.machine.path("/etc/felix-py").exists()
    typing.at_cluster(*commands(PAGE, "cluster$", heading))
