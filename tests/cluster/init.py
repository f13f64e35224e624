"""Pid 1 of a machine: makes its root file system, then reaps orphans. All that runs in the machine ends with it.

``python -m tests.cluster.init FOLDER``, in new namespaces. ``FOLDER/machine.json`` says what to show in it.
Where standard input is a pipe, the machine ends also with whoever holds its other end, however that ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

from lab.processes import start_time

CGROUPS = Path("/sys/fs/cgroup")
_RUN = ("lock", "netns", "bird", "containerd", "service")

# What kubelet wants to find in /proc/sys and would otherwise write, though it is of all machines. In here: files.
_FAKE_SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1000000,
    "kernel/keys/root_maxbytes": 25000000,
}


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"mount {' '.join(words)}: {done.stderr.strip()}")


def _show(source: str, root: Path) -> None:
    """Bind a folder at the same path in the machine, read-only."""
    target = f"{root}{source}"
    Path(target).mkdir(parents=True, exist_ok=True)
    _mount("--bind", source, target)
    _mount("-o", "remount,bind,ro", target)


def _settle(root: Path, binds: list[str]) -> None:
    """Make the machine's file system and move into it."""
    _mount("--bind", str(root), str(root))
    for source in dict.fromkeys(["/usr", *binds]):
        _show(source, root)
    _mount("--rbind", "/dev", f"{root}/dev")
    _mount("-t", "sysfs", "sysfs", f"{root}/sys")
    _mount("--rbind", str(CGROUPS), f"{root}{CGROUPS}")
    _mount("-t", "bpf", "bpf", f"{root}/sys/fs/bpf")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{root}/run")
    for name in _RUN:
        (root / "run" / name).mkdir()
    (root / ".before").mkdir(exist_ok=True)
    os.chdir(root)
    subprocess.run(["pivot_root", ".", ".before"], check=True)
    os.chdir("/")
    _mount("-t", "proc", "proc", "/proc")
    subprocess.run(["umount", "-l", "/.before"], check=True)
    # Shared, as with systemd: what a container mounts under a folder with propagation is seen by all.
    _mount("--make-rshared", "/")
    for name, value in _FAKE_SYSCTLS.items():
        if Path("/proc/sys", name).exists():
            fake = Path("/run/sysctl", name)
            fake.parent.mkdir(parents=True, exist_ok=True)
            fake.write_text(f"{value}\n")
            _mount("--bind", str(fake), f"/proc/sys/{name}")


def _reap() -> None:
    """Until SIGTERM, or the pipe's other end is closed."""
    wake, woken = os.pipe()
    for end in (wake, woken):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    waited = [wake, *([0] if stat.S_ISFIFO(os.fstat(0).st_mode) else [])]
    while True:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        if 0 in select.select(waited, [], [])[0]:
            os._exit(0)
        os.read(wake, 1 << 12)


def main() -> None:
    """Be pid 1."""
    folder = Path(sys.argv[1])
    spec = json.loads((folder / "machine.json").read_text())
    pid = int(os.readlink("/proc/self"))  # still the /proc of outside: its number there
    (folder / "pid").write_text(f"{pid} {start_time(pid)}\n")
    outside = os.open(folder, os.O_DIRECTORY | os.O_CLOEXEC)
    _settle(folder / "root", spec["binds"])
    subprocess.run(["hostname", spec["name"]], check=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    os.close(os.open("ready", os.O_CREAT | os.O_WRONLY, dir_fd=outside))
    os.close(outside)
    _reap()


if __name__ == "__main__":
    main()
