"""One machine: its namespaces, its files, its services."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lab.namespaces import inside
from lab.processes import Process
from tests.cluster.plan import CONTROL_PLANE, OUTSIDE, TOR, Shape, address, gateway, prefix_length

T = TypeVar("T")
CHECKOUT = Path(__file__).parents[2]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOLDERS = (
    "usr proc sys dev run tmp root home srv mnt opt/cni/bin var/lib/kubelet var/lib/containerd var/lib/cni"
    " var/log/pods var/log/containers var/tmp var/cache var/spool etc/cni/net.d etc/kubernetes"
)
_RACK_MAC = "02:00:00:00:00:01"
_NOT_OF_ETC = ("cni", "kubernetes", "containerd", "felix-py", "ssl", "resolv.conf", "bird")

# systemd's Restart=always, RestartSec=1. $0 is the service's name, in both.
KEEP = """\
trap 'kill $pid; wait $pid; rm -f /run/service/$0.pid; exit 0' TERM
echo $$ >/run/service/$0.keeper
while :; do
  "$@" & pid=$!
  echo $pid >/run/service/$0.pid
  wait $pid
  echo "$0 has ended: $?" >&2
  sleep 1 & pid=$!
  wait $pid
done
"""

STOP = """\
keeper=$(cat /run/service/$0.keeper 2>/dev/null) || exit 0
kill $keeper 2>/dev/null
while kill -0 $keeper 2>/dev/null; do sleep 0.05; done
rm -f /run/service/$0.keeper
"""


class CommandFailed(RuntimeError):
    """A command ended with an error or not in time; the message has its words."""


def command(
    *argv: str, timeout: float = 60, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a command and return its standard output.

    Raises:
        CommandFailed: it exited with an error, or not within ``timeout`` seconds.
    """
    try:
        done = subprocess.run(
            argv,
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{shlex.join(argv)}: no end within {timeout:.0f} s") from None
    if done.returncode:
        said = (done.stderr + done.stdout).strip()[-3000:]
        raise CommandFailed(f"{shlex.join(argv)}: exit {done.returncode}: {said}")
    return done.stdout


def wait_for(what: str, probe: Callable[[], T], seconds: float, pause: float = 0.2) -> T:
    """The first truthy answer of ``probe``; a command that fails in it is asked again.

    Raises:
        CommandFailed: there was none within that many seconds.
    """
    deadline = time.monotonic() + seconds
    while True:
        last: object = None
        try:
            if answer := probe():
                return answer
            last = answer
        except (CommandFailed, OSError, ValueError, KeyError) as error:
            last = error
        if time.monotonic() > deadline:
            raise CommandFailed(f"{what}: not within {seconds:.0f} s: {last}")
        time.sleep(pause)


class Machine:
    """A machine of a cluster.

    ``folder`` holds all that it has; ``binds`` are shown in it at the same paths, read-only. ``lifeline`` is the
    read end of a pipe: the machine ends when nobody holds the other end any more.
    """

    def __init__(
        self, name: str, folder: Path, shape: Shape, binds: Sequence[Path], lifeline: int | None = None
    ) -> None:
        self.name = name
        self.folder = folder
        self.root = folder / "root"
        self.shape = shape
        self._binds = [str(path) for path in binds]
        self._lifeline = lifeline
        self._children: list[subprocess.Popen[bytes]] = []

    # --- life ----------------------------------------------------------------------------------------

    def boot(self, tor: Machine | None) -> None:
        """Start it, for the first time or with the files of its last life; ``tor`` is the router to wire it to.

        Raises:
            CommandFailed: it did not start.
        """
        if not self.root.exists():
            self._lay_out()
        self.folder.mkdir(exist_ok=True)
        (self.folder / "ready").unlink(missing_ok=True)
        spec = {"name": self.name, "binds": self._binds}
        (self.folder / "machine.json").write_text(json.dumps(spec))
        argv = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--propagation", "private"]
        init = self._spawn(
            [*argv, sys.executable, "-m", "tests.cluster.init", str(self.folder)], "init", stdin=self._lifeline
        )

        ready = self.folder / "ready"
        wait_for(f"{self.name}'s start", lambda: ready.exists() or init.poll() is not None, 60, 0.02)
        if not ready.exists():
            raise CommandFailed(f"{self.name} did not start: {self.log('init')[-2000:]}")
        self._wire(tor)

    def halt(self) -> None:
        """End it and all that runs in it, at once, as a power cut does; its files stay."""
        process = self._init()
        if process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        wait_for(f"{self.name}'s end", lambda: not self._init().alive, 30, 0.02)
        for child in self._children:
            child.wait(30)
        self._children.clear()

    @property
    def running(self) -> bool:
        """Whether its pid 1 lives."""
        return self._init().alive

    def _init(self) -> Process:
        try:
            pid, started = (self.folder / "pid").read_text().split()
        except (FileNotFoundError, ValueError):
            return Process(0, 0)
        return Process(int(pid), int(started))

    def _lay_out(self) -> None:
        for folder in _FOLDERS.split():
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "tmp").chmod(0o1777)
        for link, target in (("var/run", "/run"), ("var/lock", "/run/lock")):
            (self.root / link).symlink_to(target)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():
                (self.root / name).symlink_to(Path("/", name).readlink())

        def left_out(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if folder == "/etc" and name in _NOT_OF_ETC]

        shutil.copytree("/etc", self.root / "etc", symlinks=True, ignore=left_out, dirs_exist_ok=True)
        if Path("/etc/ssl").is_dir():
            private = shutil.ignore_patterns("private")
            shutil.copytree("/etc/ssl", self.root / "etc" / "ssl", symlinks=True, ignore=private)
        names = dict.fromkeys((self.name, CONTROL_PLANE))
        hosts = [f"{ip} {name}" for name in names for ip in self.shape.addresses(name)]
        self.write("/etc/hosts", "\n".join(["127.0.0.1 localhost", *hosts, ""]))
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/resolv.conf", "# no resolver in here\n")
        self.write("/etc/machine-id", hashlib.sha256(str(self.folder).encode()).hexdigest()[:32] + "\n")

    # --- network -------------------------------------------------------------------------------------

    def _wire(self, tor: Machine | None) -> None:
        """``eth0`` to a port of the router's bridge; ``outside`` is behind a port of its own."""
        link = "eth0" if tor else "rack"
        if tor is None:
            # With an address of its own: else it is that of a port, and changes as machines come and go.
            mac = ["address", _RACK_MAC]
            self.net("ip", "link", "add", link, *mac, "type", "bridge", "forward_delay", "0", "stp_state", "0")
        else:
            with contextlib.suppress(CommandFailed):
                tor.net("ip", "link", "del", self.name)  # of its last life, if the kernel has not come to it
            peer = ["peer", "name", link, "netns", str(self._init().pid)]
            tor.net("ip", "link", "add", self.name, "type", "veth", *peer)
            tor.net("ip", "link", "set", self.name, *(() if self.name == OUTSIDE else ("master", "rack")), "up")
        self._set_sysctls(link)
        for device in ("lo", link):
            self.net("ip", "link", "set", device, "up")
        for family in self.shape.families:
            own = f"{address(self.name, family)}/{prefix_length(self.name, family)}"
            nodad = ["nodad"] if family == 6 else []
            self.net("ip", "addr", "add", own, "dev", link, *nodad)
            if tor:
                router = gateway(self.name, family)
                if self.name == OUTSIDE:
                    beyond = f"{router}/{prefix_length(OUTSIDE, family)}"
                    tor.net("ip", "addr", "add", beyond, "dev", OUTSIDE, *nodad)
                self.net("ip", f"-{family}", "route", "add", "default", "via", router)

    def _set_sysctls(self, link: str) -> None:
        """All of them are a network namespace's own, so nothing of the machine outside changes."""
        values = {"net/ipv4/ip_forward": 1}
        for where in ("all", "default", link):
            off = ("send_redirects", "accept_redirects", "rp_filter")
            values |= {f"net/ipv4/conf/{where}/{name}": 0 for name in off}
        if 6 in self.shape.families:
            values |= {"net/ipv6/conf/all/forwarding": 1}
            values |= {f"net/ipv6/conf/{where}/accept_redirects": 0 for where in ("all", "default", link)}
        if self.name == TOR:  # the bridge is a plain switch
            values |= {"net/bridge/bridge-nf-call-iptables": 0, "net/bridge/bridge-nf-call-ip6tables": 0}
        paths = {f"/proc/sys/{name}": value for name, value in values.items()}
        self.run(
            "sh", "-ec", "\n".join(f"test ! -e {path} || echo {value} >{path}" for path, value in paths.items())
        )

    def net(self, *argv: str) -> str:
        """Run a tool of outside in the machine's network alone."""
        return command("nsenter", f"--net={self.netns()}", *argv)

    def netns(self, pid: int = 1) -> Path:
        """The network namespace of one of the machine's processes, by its number in there; the machine's own.

        Raises:
            CommandFailed: the machine does not run.
        """
        return Path(f"/proc/{self._pid()}/root/proc/{pid}/ns/net")

    def connects(self, host: str, port: int, seconds: float = 3.0) -> bool:
        """Whether a TCP connection from the machine comes about within that many seconds."""
        with inside(self.netns()):
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        with probe:
            probe.settimeout(seconds)
            try:
                probe.connect((host, port))
            except OSError:
                return False
            return True

    def connects_soon(self, host: str, port: int) -> None:
        """Wait for a server that is about to listen.

        Raises:
            CommandFailed: no connection came about in ten seconds.
        """
        wait_for(f"{host}, port {port}, to answer {self.name}", lambda: self.connects(host, port), 10, 0.02)

    # --- files and commands --------------------------------------------------------------------------

    def path(self, inside: str) -> Path:
        """Where a file of the machine is outside of it. Not for /run, /proc, /sys, /dev and what is bound."""
        return self.root / inside.lstrip("/")

    def write(self, inside: str, text: str, mode: int = 0o644) -> None:
        """Write a file of the machine, with its folders."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode)
        path.chmod(mode)
        path.write_text(text)

    def enter(self) -> list[str]:
        """The start of a command line that runs something in the machine."""
        return ["nsenter", "-t", str(self._pid()), "-m", "-u", "-i", "-n", "-p", "--"]

    def run(
        self, *argv: str, timeout: float = 60, stdin: str | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command in the machine and return its standard output.

        Raises:
            CommandFailed: it ended with an error or not in time, or the machine does not run.
        """
        return command(*self.enter(), *argv, timeout=timeout, stdin=stdin, env=self.environment(env))

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of commands in the machine: nothing of outside."""
        kept = {name: os.environ[name] for name in ("TERM", "FELIX_PY_TEST_RUN") if name in os.environ}
        return {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **kept, **(more or {})}

    def _pid(self) -> int:
        process = self._init()
        if not process.alive:
            raise CommandFailed(f"{self.name} does not run")
        return process.pid

    # --- services ------------------------------------------------------------------------------------

    def start(self, service: str, *argv: str, env: Mapping[str, str] | None = None) -> None:
        """Start a service, and again whenever it ends. Its log is :meth:`log`."""
        self._spawn([*self.enter(), "sh", "-c", KEEP, service, *argv], service, env=self.environment(env))
        wait_for(f"{service}'s start", lambda: service in self.services(), 60, 0.02)

    def stop(self, service: str, seconds: float = 60) -> None:
        """End a service with SIGTERM and wait until it has; one that does not run is fine.

        Raises:
            CommandFailed: it has not ended within that many seconds.
        """
        self.run("sh", "-c", STOP, service, timeout=seconds)

    def signal_service(self, service: str, number: signal.Signals) -> None:
        """Send a service's program a signal; one that it dies of is a crash, and it is started again."""
        self.run("sh", "-c", f"kill -{number.value} $(cat /run/service/$0.pid)", service)

    def services(self) -> list[str]:
        """Names of the services that have been started and not stopped."""
        return (
            self.run("sh", "-c", "cd /run/service; ls *.keeper 2>/dev/null || true")
            .replace(".keeper", "")
            .split()
        )

    def log(self, service: str) -> str:
        """All that a service has said so far."""
        path = self.folder / f"{service}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _spawn(
        self, argv: Sequence[str], name: str, stdin: int | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=log,
                stderr=log,
                cwd=CHECKOUT,
                env=env,
                start_new_session=True,
            )
        self._children = [*(old for old in self._children if old.poll() is None), child]
        return child
