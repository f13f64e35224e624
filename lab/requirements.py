"""What the lab needs of the machine it runs on, checked before anything is made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from lab import namespaces as ns
from lab.machines import STANDARD_PLUGINS
from lab.state import LabError, Shape
from policy.model import Family

_TOOLS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "bird": "bird2",
    "ipset": "ipset",
    "iptables-legacy-restore": "iptables",
    "iptables-nft-restore": "iptables",
}
_MODULES = ("jsonpatch",)
"""Those of :mod:`lab` that felix-py itself does without."""


def check(shape: Shape) -> None:
    """Check everything.

    Raises:
        LabError: naming each thing that is missing and how to get it.
    """
    check_root()
    if absent := [name for name in _MODULES if find_spec(name) is None]:
        raise LabError(f"missing Python packages: {', '.join(absent)}; `make lab` installs them")
    packages = {package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if not (STANDARD_PLUGINS / "portmap").exists():
        packages.add("containernetworking-plugins")
    if packages:
        raise LabError(f"missing programs; install them with: apt-get install {' '.join(sorted(packages))}")
    problems = _probe_kernel(shape)
    if problems:
        raise LabError("this kernel lacks what the lab needs:\n" + "\n".join(f"  {line}" for line in problems))


def check_root() -> None:
    """A lab's folder and its namespaces are root's alone.

    Raises:
        LabError: this is somebody else.
    """
    if os.geteuid() != 0:
        raise LabError("a lab is made of network namespaces, and that takes root: run it with sudo")


def check_kubectl() -> str:
    """Path of kubectl.

    Raises:
        LabError: there is none.
    """
    found = shutil.which("kubectl")
    if found is None:
        raise LabError("kubectl is not installed; on Debian: apt-get install kubernetes-client")
    return found


def _probe_kernel(shape: Shape) -> list[str]:
    """Try each feature in a process with namespaces of its own, which all of it dies with."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.requirements", shape.backend, *map(str, shape.families)],
        cwd="/",  # Python looks for modules there first
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return [done.stderr.strip().rpartition("\n")[2] or f"probe exited with {done.returncode}"]
    return done.stdout.splitlines()


def _probes(backend: str, families: tuple[Family, ...]) -> list[tuple[str, list[str]]]:
    """(what it is for, command) pairs; all must succeed, in this order."""
    probes = [
        (
            "veth: links of nodes and pods",
            ["ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"],
        ),
        ("ip_set_hash_netiface: source check", ["ipset", "create", "p-iface", "hash:net,iface"]),
        ("ip_set_hash_ip, skbinfo: policy classes", ["ipset", "create", "p-mark", "hash:ip", "skbinfo"]),
        ("ip_set_hash_net: policy peers", ["ipset", "create", "p-net", "hash:net"]),
    ]
    flavour = "legacy" if backend == "legacy" else "nft"
    for family in families:
        probes += _iptables_probes(f"{'ip' if family is Family.V4 else 'ip6'}tables-{flavour}", family)
    return probes


def _iptables_probes(tool: str, family: Family) -> list[tuple[str, list[str]]]:
    peers = f"p-peers{int(family)}"
    kind = ["family", "inet6"] if family is Family.V6 else []
    mapping = ["-j", "SET", "--map-set", peers, "src", "--map-mark"]
    state = ["-m", "conntrack", "--ctstate", "ESTABLISHED"]
    return [
        (f"IP sets of IPv{int(family)}", ["ipset", "create", peers, "hash:ip", "skbinfo", *kind]),
        (f"{tool}, table raw", [tool, "-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT"]),
        (f"{tool}, xt_set: map-mark", [tool, "-t", "mangle", "-A", "FORWARD", *mapping]),
        (f"{tool}, xt_set: match", [tool, "-A", "FORWARD", "-m", "set", "--match-set", peers, "src"]),
        (f"{tool}, xt_conntrack", [tool, "-A", "FORWARD", *state, "-j", "ACCEPT"]),
        (
            f"{tool}, xt_mark",
            [tool, "-A", "FORWARD", "-m", "mark", "--mark", "1/1", "-j", "MARK", "--set-mark", "2/2"],
        ),
        (f"{tool}, masquerading", [tool, "-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE"]),
    ]


def main() -> None:
    """Print a line for each feature that does not work."""
    families = tuple(Family(int(text)) for text in sys.argv[2:])
    ns.unshare(ns.CLONE_NEWNET | ns.CLONE_NEWNS)
    ns.mount("none", Path("/"), flags=ns.MS_REC | ns.MS_SLAVE)
    # Over /run: the probes must not take the host's xtables lock.
    ns.mount("tmpfs", Path("/run"), "tmpfs")
    try:
        for part in ("upper", "work"):
            Path("/run", part).mkdir()
        ns.mount("overlay", Path("/opt"), "overlay", data="lowerdir=/opt,upperdir=/run/upper,workdir=/run/work")
    except OSError as error:
        print(f"overlay: private /etc and /opt of nodes: {error.strerror}")
    for feature, argv in _probes(sys.argv[1], families):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            print(f"{feature}: {words[0] if words else f'exit {done.returncode}'}")


if __name__ == "__main__":
    main()
