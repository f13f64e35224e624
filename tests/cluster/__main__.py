"""``python -m tests.cluster``: a real Kubernetes cluster on this machine, to play with."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.cluster.cluster import Cluster, load
from tests.cluster.installers import INSTALLERS
from tests.cluster.machine import CommandFailed
from tests.cluster.plan import FAMILIES, TOR, Shape, check_name

_EXAMPLES = """\
examples:
  python -m tests.cluster up --nodes 3 --backend nft --family dual
  python -m tests.cluster kubectl get pods -A -o wide
  python -m tests.cluster exec node1 ip route show proto 88
  python -m tests.cluster exec tor birdc -s /run/bird/bird.ctl show protocols
  python -m tests.cluster down
"""


def _fail(message: object) -> NoReturn:
    raise SystemExit(f"tests.cluster: {message}")


def _folder(name: str) -> Path:
    try:
        return Path(os.environ.get("TMPDIR", "/tmp"), "felix-py-clusters", check_name(name))
    except ValueError as error:
        _fail(error)


def _loaded(name: str) -> Cluster:
    return load(name, _folder(name)) or _fail(f"no cluster {name} here; bring one up first")


def _up(args: argparse.Namespace) -> None:
    began = time.monotonic()
    folder = _folder(args.name)
    if folder.exists():
        _fail(f"{folder} exists: take that cluster down first")
    shape = Shape(args.nodes, FAMILIES[args.family], args.backend, args.audit)
    cluster = Cluster(
        args.name,
        folder,
        shape,
        INSTALLERS[args.install](),
        binds=args.bind,
        say=lambda text: print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True),
    )
    try:
        cluster.up()
    except BaseException as error:
        if args.keep:
            print(f"left for a look, logs are {folder}/*/*.log", file=sys.stderr)
        else:
            cluster.down()
        if isinstance(error, CommandFailed | OSError):
            _fail(error)
        raise


def _down(args: argparse.Namespace) -> None:
    folder = _folder(args.name)
    # Also what has failed before its shape was noted: all machines that there may be.
    cluster = load(args.name, folder) or Cluster(args.name, folder, Shape(99), INSTALLERS["none"]())
    cluster.down()


def _kubectl(args: argparse.Namespace) -> None:
    cluster = _loaded(args.name)
    machine = cluster.control_plane.machine
    argv = [*machine.enter(), *cluster.control_plane.kubectl_command(), *args.words]
    os.execvpe(argv[0], argv, machine.environment())


def _exec(args: argparse.Namespace) -> None:
    cluster = _loaded(args.name)
    machine = cluster.machines.get(args.machine) or _fail(f"machines are {' '.join(cluster.machines)}")
    argv = [*machine.enter(), *(args.words or ["bash"])]
    env = machine.environment({"KUBECONFIG": "/etc/kubernetes/admin.kubeconfig"})
    os.execvpe(argv[0], argv, env)


def _status(args: argparse.Namespace) -> None:
    cluster = _loaded(args.name)
    print(f"{cluster.name}: {cluster.shape}, {type(cluster.installer).__name__}, in {cluster.folder}")
    for machine in cluster.machines.values():
        services = machine.services() if machine.running else ["does not run"]
        print(f"{machine.name:8}", *services)
    print(cluster.tor.birdc("show", "protocols"), end="")
    for family in cluster.shape.families:
        print(cluster.machines[TOR].run("ip", f"-{family}", "route"), end="")
    print(cluster.kubectl("get", "nodes", "-o", "wide"), end="")
    print(cluster.kubectl("get", "pods", "-A", "-o", "wide"), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default="play", help="of the cluster (default: %(default)s)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start a cluster and install a network")
    up.add_argument("--nodes", type=int, default=3, choices=range(1, 100), metavar="N", help="default: 3")
    up.add_argument("--family", choices=FAMILIES, default="ipv4", help="of machines, pods and services")
    up.add_argument("--backend", choices=["nft", "legacy"], default="nft", help="what iptables is on the nodes")
    up.add_argument("--install", choices=INSTALLERS, default="by-hand", help="the network (default: %(default)s)")
    up.add_argument("--audit", action="store_true", help="the API server writes /var/log/audit.log")
    up.add_argument("--bind", type=Path, action="append", default=[], help="show this folder in all machines")
    up.add_argument("--keep", action="store_true", help="leave what there is when it fails")
    up.set_defaults(run=_up)
    commands.add_parser("status", help="machines, sessions, nodes, pods").set_defaults(run=_status)
    kubectl = commands.add_parser("kubectl", help="kubectl as administrator", add_help=False)
    kubectl.set_defaults(run=_kubectl)
    inside = commands.add_parser("exec", help="run a command on a machine: tor, outside, cp, node1 …")
    inside.add_argument("machine")
    inside.set_defaults(run=_exec)
    commands.add_parser("down", help="end a cluster and remove all of it").set_defaults(run=_down)
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Ours, and what belongs to the command behind ``kubectl`` or ``exec MACHINE``, options too."""
    for place, word in enumerate(argv):
        if word in ("kubectl", "exec") and (place == 0 or argv[place - 1] != "--name"):
            cut = place + (1 if word == "kubectl" else 2)
            return argv[:cut], argv[cut:]
    return argv, []


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit("tests.cluster: ended by a signal")


def main() -> None:
    """Run a command."""
    own, words = _split(sys.argv[1:])
    args = _parser().parse_args(own)
    args.words = words
    signal.signal(signal.SIGTERM, _end)
    try:
        args.run(args)
    except (CommandFailed, OSError) as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
