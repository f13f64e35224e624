"""``python -m lab.machine SPEC.json``: one machine of the lab, a node or the router.

Enters the machine's network namespace, gives it mounts of its own, then starts its programs and starts each again
when it dies, as a kubelet does with containers. SIGTERM ends them. A program never outlives this process.

The mounts: an empty /run (so a private xtables.lock), and /etc, /opt and /var/lib as overlays, so that nothing
that is done in a machine changes the host. The machine's folder is at /run/lab.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from lab import namespaces as ns

FOLDER = Path("/run/lab")
_OVERLAID = (Path("/etc"), Path("/opt"), Path("/var/lib"))
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
_BACKOFF = (0.0, 0.05, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each start again; one that ran for the last of them counts as well and starts over."""

_PATIENCE = 3.0


class Program(msgspec.Struct, frozen=True):
    """A program to keep running; its output goes to ``log/NAME.log`` in the machine's folder."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}


class Spec(msgspec.Struct, frozen=True):
    """A machine.

    ``folders`` maps folders of the machine to existing ones in its own folder; ``links`` are symbolic links to
    change where they exist.
    """

    name: str
    netns: str
    folders: dict[str, str]
    programs: tuple[Program, ...]
    links: dict[str, str] = {}


class Running(msgspec.Struct, frozen=True):
    """One program in ``status.json``. ``pid`` 0: waiting to be started again; ``since`` is Unix time."""

    pid: int
    restarts: int
    since: float


# --- mounts ------------------------------------------------------------------------------------------


def settle(spec: Spec, folder: Path) -> None:
    """Move this process into the machine."""
    with open(ns.NETNS_DIR / spec.netns) as netns:
        ns.setns(netns.fileno())
    ns.unshare(ns.CLONE_NEWNS)
    # Slave: the pods' network namespaces, which are mounts, appear and go here as they do outside.
    ns.mount("none", Path("/"), flags=ns.MS_REC | ns.MS_SLAVE)
    # Opened while they can be: /run, where both usually are, is about to be covered.
    netns_dir = os.open(ns.NETNS_DIR, os.O_PATH | os.O_CLOEXEC)
    own = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    ns.mount("tmpfs", Path("/run"), "tmpfs", data="mode=755")
    for fd, target in ((netns_dir, ns.NETNS_DIR), (own, FOLDER)):
        target.mkdir()
        ns.mount(f"/proc/self/fd/{fd}", target, flags=ns.MS_BIND | ns.MS_REC)
        os.close(fd)
    ns.mount("sysfs", Path("/sys"), "sysfs")  # /sys/class/net is of the namespace in which it was mounted
    for path in _OVERLAID:
        _overlay(path)
    for inside, source in spec.folders.items():
        Path(inside).mkdir(parents=True, exist_ok=True)
        ns.mount(str(FOLDER / source), Path(inside), flags=ns.MS_BIND)
    for link, destination in spec.links.items():
        if Path(link).is_symlink():
            Path(link).unlink()
            Path(link).symlink_to(destination)


def _overlay(path: Path) -> None:
    above = Path("/run/overlay") / path.name
    for part in ("upper", "work"):
        (above / part).mkdir(parents=True)
    data = f"lowerdir={path},upperdir={above}/upper,workdir={above}/work"
    ns.mount("overlay", path, "overlay", data=data)


# --- programs ----------------------------------------------------------------------------------------


class _Keeper:
    """One program and its deaths."""

    def __init__(self, program: Program) -> None:
        self.name = program.name
        self._program = program
        self._child: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._restarts = 0
        self._since = 0.0
        self.start_at: float | None = 0.0

    @property
    def running(self) -> Running:
        return Running(self._child.pid if self._child else 0, self._restarts, self._since)

    def start(self) -> None:
        with (FOLDER / "log" / f"{self.name}.log").open("ab") as log:
            self._child = subprocess.Popen(
                self._program.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._program.env},
                preexec_fn=_prepare_child,
            )
        self._since = time.time()
        self.start_at = None

    def reap(self) -> bool:
        """Plan the next start if the program has died; true if it had."""
        if self._child is None or self._child.poll() is None:
            return False
        self._note(f"exited with {self._child.returncode}")
        if time.time() - self._since > _BACKOFF[-1]:
            self._failures = 0
        self.start_at = time.monotonic() + _BACKOFF[min(self._failures, len(_BACKOFF) - 1)]
        self._failures += 1
        self._restarts += 1
        self._child = None
        return True

    def stop(self) -> None:
        if self._child is None:
            return
        self._child.terminate()
        try:
            self._child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _note(self, event: str) -> None:
        line = msgspec.json.encode({"component": "machine", "event": f"{self.name} {event}", "level": "warning"})
        with (FOLDER / "log" / f"{self.name}.log").open("ab") as log:
            log.write(line + b"\n")


def _prepare_child() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    ns.set_death_signal(signal.SIGKILL)


def _write_status(keepers: list[_Keeper]) -> None:
    fresh = FOLDER / ".status.json"
    fresh.write_bytes(msgspec.json.encode({keeper.name: keeper.running for keeper in keepers}))
    fresh.replace(FOLDER / "status.json")


def _keep(keepers: list[_Keeper]) -> None:
    """Until SIGTERM or SIGINT."""
    while True:
        due = [
            keeper for keeper in keepers if keeper.start_at is not None and keeper.start_at <= time.monotonic()
        ]
        for keeper in due:
            keeper.start()
        if due:
            _write_status(keepers)
        waiting = [keeper.start_at - time.monotonic() for keeper in keepers if keeper.start_at is not None]
        arrived = signal.sigtimedwait(_SIGNALS, max(0.0, min(waiting, default=3600.0)))
        if arrived and arrived.si_signo != signal.SIGCHLD:
            return
        died = [keeper for keeper in keepers if keeper.reap()]
        if died:
            _write_status(keepers)


def main() -> None:
    """Be the machine."""
    path = Path(sys.argv[1])
    spec = msgspec.json.decode(path.read_bytes(), type=Spec)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    (path.parent / "status.json").unlink(missing_ok=True)  # of an earlier life
    settle(spec, path.parent)
    keepers = [_Keeper(program) for program in spec.programs]
    try:
        _keep(keepers)
    finally:
        for keeper in reversed(keepers):
            keeper.stop()


if __name__ == "__main__":
    main()
