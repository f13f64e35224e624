"""FRR, GoBGP and OpenBGPD in a network namespace, each with the configuration it is given."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.bgp import NODE4, NODE6, NODE_ASN
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually

FRR_BGPD, FRR_ZEBRA = "/usr/lib/frr/bgpd", "/usr/lib/frr/zebra"

Ask = Callable[..., str]
"""Asks the router something on its command line."""


@contextmanager
def daemon(namespace: NetworkNamespace, folder: Path, *argv: str) -> Iterator[None]:
    """A program that runs as long as the context, with its output in ``folder``."""
    with (folder / "daemon.log").open("w") as log:
        process = namespace.popen(argv, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(10)


def _written(path: Path, config: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config)
    return path


def crash(namespace: NetworkNamespace) -> None:
    """Kill all processes of a router, which then has no time for a NOTIFICATION."""
    for pid in run("ip", "netns", "pids", namespace.name).split():
        os.kill(int(pid), signal.SIGKILL)


@contextmanager
def frr(namespace: NetworkNamespace, folder: Path, config: str) -> Iterator[Ask]:
    """FRR's bgpd, without zebra: nothing reaches the kernel."""
    if not os.path.exists(FRR_BGPD) or not shutil.which("vtysh"):
        pytest.skip("FRR is not installed")
    path = _written(folder / "bgpd.conf", config)

    def ask(*words: str) -> str:
        argv = ["vtysh", "--vty_socket", str(folder), "-d", "bgpd", "-c", " ".join(words)]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    argv = [FRR_BGPD, "-f", str(path), "-i", str(folder / "pid"), "-z", str(folder / "zserv")]
    argv += ["--vty_socket", str(folder), "-P", "0", "-S", "-Z", "--log", f"file:{folder}/bgpd.log"]
    with daemon(namespace, folder, *argv):
        eventually(lambda: "router identifier" in ask("show bgp summary"))
        yield ask


@contextmanager
def frr_with_interfaces(namespace: NetworkNamespace, config: str) -> Iterator[Ask]:
    """FRR's bgpd with zebra, which tells it of interfaces: sessions between link-local addresses need that."""
    if not os.path.exists(FRR_BGPD) or not shutil.which("vtysh"):
        pytest.skip("FRR is not installed")
    with tempfile.TemporaryDirectory(prefix="frr-") as name:
        # zebra gives up being root and then makes its socket here.
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "zebra.conf").touch()
        (folder / "bgpd.conf").write_text(config)

        def ask(*words: str) -> str:
            argv = ["vtysh", "--vty_socket", str(folder), "-c", " ".join(words)]
            return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

        common = ["-z", str(folder / "zserv"), "--vty_socket", str(folder), "-P", "0"]
        zebra = [FRR_ZEBRA, "-f", str(folder / "zebra.conf"), "-i", str(folder / "zebra.pid"), *common]
        bgpd = [FRR_BGPD, "-f", str(folder / "bgpd.conf"), "-i", str(folder / "bgpd.pid"), "-S", *common]
        with daemon(namespace, folder, *zebra):
            eventually(lambda: (folder / "zserv").exists(), 60)
            with daemon(namespace, folder, *bgpd):
                eventually(lambda: "router identifier" in ask("show bgp summary"), 60)
                yield ask


@contextmanager
def gobgp(namespace: NetworkNamespace, folder: Path, config: str, *options: str) -> Iterator[Ask]:
    """GoBGP, once it has a neighbor."""
    if not shutil.which("gobgpd") or not shutil.which("gobgp"):
        pytest.skip("GoBGP is not installed")
    path = _written(folder / "gobgpd.toml", config)

    def ask(*words: str) -> str:
        return namespace.run("gobgp", *words, check=False)

    argv = ("gobgpd", "-f", str(path), "--pprof-disable", "--api-hosts", "127.0.0.1:50051", "-p", *options)
    with daemon(namespace, folder, *argv):
        eventually(lambda: len(ask("neighbor").splitlines()) > 1)
        yield ask


@contextmanager
def openbgpd(namespace: NetworkNamespace, folder: Path, config: str) -> Iterator[Ask]:
    """OpenBGPD, which leaves the kernel alone, with a control socket of its own."""
    if not shutil.which("bgpd") or not shutil.which("bgpctl"):
        pytest.skip("OpenBGPD is not installed")
    control = folder / "bgpd.sock"
    path = _written(folder / "bgpd.conf", f'socket "{control}"\nfib-update no\n{config}')
    path.chmod(0o600)
    # It locks itself up in its user's home, which systemd would make.
    Path(pwd.getpwnam("_openbgpd").pw_dir).mkdir(parents=True, exist_ok=True)

    def ask(*words: str) -> str:
        argv = ["bgpctl", "-s", str(control), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout

    with daemon(namespace, folder, "bgpd", "-d", "-v", "-f", str(path)):
        eventually(lambda: "Neighbor" in ask("show"), 60)
        yield ask


def frr_routes(ask: Ask) -> dict[str, bool]:
    """Prefixes from the node -> whether they are stale."""
    found: dict[str, bool] = {}
    for family in ("ipv4", "ipv6"):
        answer = json.loads(ask("show bgp", family, "unicast json") or "{}")
        for prefix, paths in answer.get("routes", {}).items():
            found.update((prefix, bool(path.get("stale"))) for path in paths if path.get("path") == str(NODE_ASN))
    return found


def gobgp_routes(ask: Ask) -> dict[str, bool]:
    """Prefixes from the node -> whether they are stale."""
    found: dict[str, bool] = {}
    for family in ("ipv4", "ipv6"):
        answer = ask("global", "rib", "-a", family, "-j")
        for prefix, paths in json.loads(answer if answer.startswith("{") else "{}").items():
            ours = [path for path in paths if path.get("neighbor-ip") in (NODE4, NODE6)]
            found.update((prefix, bool(path.get("stale"))) for path in ours)
    return found


def openbgpd_routes(ask: Ask) -> dict[str, bool]:
    """Prefixes from the node -> whether they are stale."""
    answer = json.loads(ask("-j", "show", "rib", "in", "as", str(NODE_ASN)) or "{}")
    return {route["prefix"]: bool(route.get("stale")) for route in answer.get("rib", [])}
