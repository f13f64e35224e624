"""``python -m lab.keeper STATE_ROOT NAME``: keeps the programs of a lab running.

Starts what ``lab.json`` names and starts each again when it dies. SIGHUP makes it read ``lab.json`` again. It
writes what runs to ``keeper.json``. When it dies the programs live on; the next keeper, which ``felix-py lab up``
starts, takes over those that run and starts the others. There is one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from felix_py import log
from lab.machines import listen_in
from lab.namespaces import NETNS_DIR
from lab.processes import Process, process_of, start
from lab.state import KeeperState, Kept, LabProgram, StateDir

BACKOFF = (0.0, 0.05, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each start again; one that ran for the last of them counts as well and starts over."""

_logger = log.get("keeper")


class _Watch:
    """One program: its process, whoever started it, and its deaths."""

    def __init__(self, keeper: Keeper, program: LabProgram, kept: Kept | None) -> None:
        self._keeper = keeper
        self._program = program
        self._child: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self.kept = kept or Kept(None, 0, 0.0)

    def take_over(self) -> None:
        """Watch the process that runs; start one where none does."""
        process = self.kept.process
        if process is None:
            self._start()
        elif not (process.alive and self._watch(process)):
            self._ended("gone")

    def _start(self) -> None:
        state, program = self._keeper.state_dir, self._program
        try:
            fds = self._keeper.sockets(program)
            argv = [*program.argv, *(word for fd in fds for word in ("--fd", str(fd)))]
            self._child = start(state.path, argv, state.log(program.name), fds)
        except OSError as error:
            self._ended(str(error))
            return
        process = process_of(self._child.pid)
        self.kept = Kept(process, self.kept.restarts, time.time())
        if not self._watch(process):
            self._ended("gone")

    def _watch(self, process: Process) -> bool:
        """Hear of its end; false when it has ended already."""
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        if not process.alive and self._child is None:
            os.close(fd)  # another process by now
            return False
        asyncio.get_running_loop().add_reader(fd, self._on_end, fd)
        return True

    def _on_end(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        code = self._child.wait() if self._child else None
        self._child = None
        self._ended("gone" if code is None else f"exit {code}")

    def _ended(self, how: str) -> None:
        if time.time() - self.kept.since > BACKOFF[-1]:
            self._failures = 0
        pause = BACKOFF[min(self._failures, len(BACKOFF) - 1)]
        self._failures += 1
        self.kept = Kept(None, self.kept.restarts + 1, self.kept.since)
        _logger.warning("program ended", program=self._program.name, how=how, again_in=pause)
        asyncio.get_running_loop().call_later(pause, self._again)
        self._keeper.note()

    def _again(self) -> None:
        self._start()
        self._keeper.note()


class Keeper:
    """All programs of one lab."""

    def __init__(self, state: StateDir) -> None:
        self.state_dir = state
        self._watches: dict[str, _Watch] = {}
        self._sockets: dict[str, list[socket.socket]] = {}
        before = state.read_keeper()
        self._before = dict(before.programs) if before else {}
        self._ports = dict(before.ports) if before else {}

    def read(self) -> None:
        """Take over or start every program of ``lab.json`` that is not watched yet."""
        record = self.state_dir.read()
        for program in record.programs if record else ():
            if program.name not in self._watches:
                watch = _Watch(self, program, self._before.get(program.name))
                self._watches[program.name] = watch
                watch.take_over()
        self.note()

    def sockets(self, program: LabProgram) -> list[int]:
        """The listening sockets of a program. They stay open here, so clients wait for one that starts again.

        Raises:
            OSError: an address is taken, or a network namespace gone.
        """
        if program.name not in self._sockets:
            ports = self._ports.get(program.name) or [one.port for one in program.listen]
            made: list[socket.socket] = []
            try:
                for one, port in zip(program.listen, ports, strict=True):
                    netns = NETNS_DIR / one.netns if one.netns else Path("/proc/self/ns/net")
                    made.append(listen_in(netns, one.address, port))
            except OSError:
                for opened in made:
                    opened.close()
                raise
            self._sockets[program.name] = made
            self._ports[program.name] = [opened.getsockname()[1] for opened in made]
        return [one.fileno() for one in self._sockets[program.name]]

    def note(self) -> None:
        """Write what runs. A lab whose folder is gone is left to ``felix-py lab down``."""
        programs = {name: watch.kept for name, watch in self._watches.items()}
        with contextlib.suppress(OSError):
            self.state_dir.write_keeper(KeeperState(process_of(os.getpid()), programs, self._ports))


async def _keep(keeper: Keeper) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, keeper.read)
    keeper.read()
    await stop.wait()


def main() -> None:
    """Be the keeper until SIGTERM; the programs stay."""
    state = StateDir(Path(sys.argv[1]), sys.argv[2])
    log.configure(log.LogLevel.INFO, log.LogFormat.JSON)
    lock = os.open(state.path / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # there is one
    asyncio.run(_keep(Keeper(state)))


if __name__ == "__main__":
    main()
