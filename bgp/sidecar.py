"""The sidecar: runs ExaBGP with the agent's configuration, and reloads it without losing a session.

    python -m bgp.sidecar --run-dir DIR

The agent writes ``DIR/exabgp.conf`` (atomically). A text that ExaBGP accepts in a process of its own becomes
``DIR/exabgp-running.conf``, the only file that the real ExaBGP reads: one failed reload would break all later
ones. :mod:`bgp.bridge` and the agent connect by ``DIR/bridge.sock``.

ExaBGP is always ended by SIGKILL, also when the sidecar gets SIGTERM, and when it hangs (:mod:`bgp.standstill`).
The peers see the TCP session end without a NOTIFICATION and keep our routes for the restart time (RFC 4724), so
that a new sidecar takes over unnoticed. On a node that leaves, the agent withdraws the routes first. If the
sidecar itself is killed, ExaBGP ends with it (PR_SET_PDEATHSIG), so that the port is free for the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bgp import bridge, render, standstill
from bgp.bfd.child import Child
from bgp.restarts import Restarts

CONFIG = "exabgp.conf"
RUNNING = "exabgp-running.conf"
SOCKET = "bridge.sock"

_CANDIDATE = "exabgp-candidate.conf"
_LOCK = "sidecar.lock"
_POLL = 0.1
"""Seconds between two polls during a reload."""

_IDLE = 1.0
"""Seconds between two polls otherwise, when events wake the sidecar at once."""

_VALIDATE_TIMEOUT = 30.0
_VALIDATE_AGAIN = 5.0
_RELOAD_RETRY = 0.5
_RELOAD_GIVE_UP = 60.0
_LINE_MOST = 16384
_LINES_AT_ONCE, _LINES_A_SECOND = 500, 5.0
"""Of ExaBGP's log, as a token bucket: what a peer does may cost ten lines, and 60 if it makes ExaBGP fail."""

_LOG_MOST = 256 * 1024
_CONFIG_MOST = 4 * 1024 * 1024
_SOCKET_PATH_MOST = 107  # unix(7): sun_path, with its final zero
_PR_SET_PDEATHSIG = 1
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x8, 0x80
_LOADED = b"loaded new configuration successfully"
_CHATTER = ("welcome ", "advice ")
_NOT_LOADED = b"could not load/reload configuration"
_libc = ctypes.CDLL(None)
_NODE = os.environ.get("FELIX_PY_NODE_NAME") or socket.gethostname()

_ENVIRONMENT = {
    "exabgp_api_cli": "false",
    "exabgp_api_ack": "true",
    "exabgp_api_chunk": "20",
    "exabgp_api_show-routes-format": "v2",  # v1 repeats the whole table on every line
    # Hundredths of a second that the idle loop sleeps; each turn costs 0.13 ms. The bridge wakes it for work.
    "exabgp_reactor_speed": "10",
    "exabgp_log_destination": "stdout",
    "exabgp_log_level": "INFO",  # only this level reports the result of a reload
    "exabgp_log_processes": "false",  # a line per route
    "exabgp_log_statistics": "false",
    "exabgp_log_short": "true",
}


class _NoVerdict(Exception):
    """Whether ExaBGP takes a text is not known."""


class Sidecar:
    """One ExaBGP process and its configuration."""

    def __init__(self, run_dir: Path) -> None:
        self._dir = run_dir
        self._child: subprocess.Popen[bytes] | None = None
        self._child_listens: tuple[int, tuple[str, ...]] = (0, ())
        self._restarts = Restarts()
        self._life: _Life | None = None
        self._seen: tuple[int, int, int] | None = None
        self._look_again_at = math.inf
        self._text = ""
        self._unreadable = ""
        self._log_partial = b""
        self._lines, self._lines_at = float(_LINES_AT_ONCE), 0.0
        self._reload_since = 0.0
        self._signal_at = 0.0
        self._stopping = False
        self._bfd = Child(run_dir, log)
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._changes = _watch(run_dir)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        log("info", "started", run_dir=str(self._dir))
        try:
            while not self._stopping:
                self._read_config()
                self._supervise()
                self._retry_reload()
                self._bfd.supervise(time.monotonic())
                self._wait()
                self._pump_log()
        finally:
            self._bfd.stop()
            self._kill()
        log("info", "stopped; peers keep the routes for the restart time")

    def _stop(self, _number: int, _frame: object) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            os.write(self._wake, b"x")

    def _wait(self) -> None:
        """Wait for a changed file, output or end of ExaBGP, or a signal, up to the polling interval."""
        watched = [self._woken]
        seconds = _IDLE if self._changes >= 0 and not self._reload_since else _POLL
        if self._child is None and (start := self._restarts.due - time.monotonic()) > 0:
            seconds = min(seconds, start)
        watched += [descriptor for descriptor in (self._changes, self._bfd.output) if descriptor >= 0]
        if self._child is not None and self._child.stdout is not None:
            watched.append(self._child.stdout.fileno())
        _stderr.flush()
        ready = select.select(watched, [], [], seconds)[0]
        if self._changes in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._changes, 65536)

    # --- configuration -----------------------------------------------------------------------------------

    def _read_config(self) -> None:
        """Validate and use a new text; an invalid one changes nothing."""
        path = self._dir / CONFIG
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen and time.monotonic() < self._look_again_at:
                return
            if status.st_size > _CONFIG_MOST:
                raise OSError(f"{path} is larger than {_CONFIG_MOST >> 20} MB")
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            if not isinstance(error, FileNotFoundError) and str(error) != self._unreadable:
                log("warning", "cannot read the configuration", error=str(error))
            self._unreadable = str(error)
            return
        self._unreadable, self._seen, self._look_again_at = "", seen, math.inf
        if text == self._text:
            return
        whole = render.process_section(Path(sys.executable), Path(bridge.__file__), self._dir / SOCKET) + text
        try:
            if not self._is_running(whole):
                if problem := self._validate(whole):
                    log("error", "configuration refused, the old one stays", error=problem)
                    return
                os.replace(self._dir / _CANDIDATE, self._dir / RUNNING)
        except (OSError, _NoVerdict) as error:
            log("error", "cannot validate the configuration, the old one stays; trying again", error=str(error))
            self._look_again_at = time.monotonic() + _VALIDATE_AGAIN
            return
        self._text = text
        self._bfd.want(text, time.monotonic())
        log("info", "configuration accepted")
        if self._child and render.listen_on(text) != self._child_listens:
            # That comes from ExaBGP's environment.
            self._kill()
        elif self._child:
            self._reload_since, self._signal_at = time.monotonic(), 0.0

    def _is_running(self, text: str) -> bool:
        """Whether a previous sidecar has validated this text already."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._dir / RUNNING).read_text() == text
        return False

    def _validate(self, text: str) -> str:
        """Write the text to the candidate file; returns why ExaBGP refuses it, empty if it is valid.

        Raises OSError and _NoVerdict where that says nothing of the text: a full disk, no memory, a busy machine.
        """
        candidate = self._dir / _CANDIDATE
        descriptor = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # for passwords
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "bgp.launch", "validate", str(candidate)],
                env=self._environment(text),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_VALIDATE_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _NoVerdict(f"no verdict within {_VALIDATE_TIMEOUT:.0f} s") from None
        if done.returncode < 0:
            raise _NoVerdict(f"ended by signal {-done.returncode}")
        if done.returncode == 0:
            return ""
        return " ".join((done.stdout + done.stderr).decode(errors="replace").split())[-1000:] or "refused"

    def _environment(self, text: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("exabgp_", "exabgp."))}
        environment = inherited | _ENVIRONMENT
        if os.getuid() == 0:
            # Otherwise it becomes "nobody" and cannot read the configuration at the next reload.
            environment["exabgp_daemon_user"] = "root"
        port, addresses = render.listen_on(text)
        if port:
            # Without listening, sessions only return after a backoff, ours or the peer's, of up to a minute.
            environment["exabgp_tcp_bind"] = " ".join(
                addresses or (("0.0.0.0", "::") if _has_ipv6() else ("0.0.0.0",))
            )
            environment["exabgp_tcp_port"] = str(port)
        return environment

    def _retry_reload(self) -> None:
        """Repeat the reload request until confirmed: ExaBGP drops it while any route waits to be sent."""
        now = time.monotonic()
        if not self._reload_since or self._child is None or now < self._signal_at + _RELOAD_RETRY:
            return
        if now > self._reload_since + _RELOAD_GIVE_UP:
            log("warning", "reload not taken, starting ExaBGP anew")
            self._kill()
            return
        self._signal_at = now
        self._child.send_signal(signal.SIGUSR1)

    # --- process -----------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        now = time.monotonic()
        if self._child is None:
            if (self._dir / RUNNING).exists() and now >= self._restarts.due:
                self._try_start(now)
            return
        if self._child.poll() is None:
            self._restarts.runs(now)
            if self._life is not None:
                self._life.mind(now)
            return
        log("error", "ExaBGP ended", code=self._child.returncode, again_in=self._restarts.delay)
        self._forget_child()
        self._restarts.failed(now)

    def _try_start(self, now: float) -> None:
        try:
            self._start(now)
        except (OSError, UnicodeDecodeError) as error:  # no process, no memory, a damaged file
            log("error", "ExaBGP cannot be started", error=str(error), again_in=self._restarts.delay)
            self._restarts.failed(now)

    def _start(self, now: float) -> None:
        running = self._dir / RUNNING
        text = running.read_text()
        self._child_listens = render.listen_on(text)
        self._bfd.want(text, now)
        turns = standstill.new_turns()
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "bgp.launch", "server", str(running)],
                env=self._environment(text) | {standstill.TURNS: str(turns)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(turns,),
                preexec_fn=_die_with(os.getpid()),
            )
            self._life = _Life(self._child.pid, standstill.Turns(turns))
        finally:
            os.close(turns)
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        self._restarts.started(now)
        self._reload_since = 0.0
        log("info", "ExaBGP started", pid=self._child.pid)

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._forget_child()

    def _forget_child(self) -> None:
        if self._child is not None and self._child.stdout is not None:
            self._child.stdout.close()
        self._child, self._life, self._reload_since = None, None, 0.0

    # --- ExaBGP's log ------------------------------------------------------------------------------------

    def _pump_log(self) -> None:
        if self._child is None or self._child.stdout is None:
            return
        pipe = self._child.stdout.fileno()
        with contextlib.suppress(BlockingIOError):
            data = os.read(pipe, 65536)
            if not data:
                time.sleep(_POLL)  # it is ending, as poll() will find
            *lines, self._log_partial = (self._log_partial + data).split(b"\n")
            self._log_partial = self._log_partial[-_LINE_MOST:]
            for line in lines:
                self._exabgp_said(line)

    def _exabgp_said(self, line: bytes) -> None:
        if _LOADED in line and self._signal_at:
            self._reload_since = 0.0
        elif _NOT_LOADED in line:
            self._reload_since = time.monotonic() - _RELOAD_GIVE_UP
        text = line.decode(errors="replace").strip()
        if not text or text.startswith(_CHATTER):
            return
        now = time.monotonic()
        self._lines = min(_LINES_AT_ONCE, self._lines + (now - self._lines_at) * _LINES_A_SECOND)
        self._lines_at = now
        if self._lines < 1:
            _stderr.lose()
        else:
            self._lines -= 1
            log("info", text, component="exabgp")


class _Life:
    """Ends an ExaBGP that hangs, and a helper of it that does, which ExaBGP starts anew by itself."""

    def __init__(self, pid: int, turns: standstill.Turns) -> None:
        self._pid = pid
        self._turns = turns
        self._at = 0.0
        self._runs, self._loops, self._helper = (standstill.Standstill() for _ in range(3))

    def mind(self, now: float) -> None:
        """Look at both once a second."""
        if now < self._at + standstill.EVERY:
            return
        self._at = now
        stands = self._runs.look(standstill.activity(self._pid), now)
        turns = self._loops.look(self._turns.read(), now)
        if stands >= standstill.STANDS or turns >= standstill.LOOPS:
            self._end("ExaBGP hangs: it is ended, and started anew", self._pid, max(stands, turns))
            self._runs, self._loops = standstill.Standstill(), standstill.Standstill()
            return
        for helper in standstill.children(self._pid)[:1]:
            if (stands := self._helper.look(standstill.activity(helper), now)) >= standstill.STANDS:
                self._end("ExaBGP's helper hangs: it is ended, and started anew", helper, stands)
                self._helper = standstill.Standstill()

    def _end(self, text: str, pid: int, seconds: float) -> None:
        log("error", text, pid=pid, seconds=round(seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _watch(folder: Path) -> int:
    """An inotify(7) descriptor that is readable when the folder has a new file; -1: unavailable."""
    descriptor: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        return -1
    if _libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_CLOSE_WRITE | _IN_MOVED_TO) < 0:
        os.close(descriptor)
        return -1
    return descriptor


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        return False
    return True


def _die_with(parent: int) -> Callable[[], None]:
    """A preexec_fn by which the child gets SIGKILL when the sidecar ends, however it ends."""

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


class _Stderr:
    """Standard error that never blocks: ExaBGP waits for the sidecar, and its peers for it.

    The reader may hang or be gone. Lines that cannot be written wait, up to a bound, and then are lost and
    counted.
    """

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._lost = 0

    def write(self, line: str) -> None:
        """Write one line, now or later, or lose it."""
        if self._lost and self.flush():
            self._waiting += f"{self._lost} lines of this log are lost\n".encode()
            self._lost = 0
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if len(self._waiting) + len(data) > _LOG_MOST:
            self._lost += 1
        else:
            self._waiting += data
        self.flush()

    def lose(self) -> None:
        """Count a line that is not to be written."""
        self._lost += 1

    def drain(self) -> None:
        """Write waiting lines for up to a second, before the end."""
        until = time.monotonic() + 1.0
        while not self.flush() and (left := until - time.monotonic()) > 0:
            select.select([], [2], [], left)

    def flush(self) -> bool:
        """Write what can be written now; returns whether that is all."""
        while self._waiting:
            try:
                if not select.select([], [2], [], 0)[1]:
                    return False
                # A ready pipe accepts PIPE_BUF bytes at once (pipe(7)), and so does a socket or a terminal.
                del self._waiting[: os.write(2, self._waiting[: select.PIPE_BUF])]
            except (OSError, ValueError):
                self._lost += self._waiting.count(b"\n")
                self._waiting.clear()
        return True


_stderr = _Stderr()


def log(level: str, event: str, **values: object) -> None:
    """One line on stderr: plain on a terminal, JSON otherwise."""
    fields = {"component": "bgp-sidecar", "node": _NODE, **values}
    if sys.stderr.isatty():
        extra = " ".join(f"{key}={value}" for key, value in fields.items())
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} [{level}] {event} {extra}"
    else:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        line = json.dumps({**fields, "event": event, "level": level, "timestamp": stamp})
    _stderr.write(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the sidecar; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bgp.sidecar", description="Run ExaBGP for the felix-py agent.")
    parser.add_argument("--run-dir", type=Path, required=True, help="the folder shared with the agent")
    run_dir = Path(os.path.abspath(parser.parse_args(argv).run_dir))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        render.process_section(Path(sys.executable), Path(bridge.__file__), run_dir / SOCKET)
        if len(os.fsencode(run_dir / SOCKET)) > _SOCKET_PATH_MOST:
            raise ValueError(f"{run_dir}: too long for the path of a socket")
        lock = os.open(run_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, ValueError) as error:
        log("error", "cannot start", error=str(error))
        return 1
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log("error", "cannot start", error=f"another sidecar works in {run_dir}")
        return 1
    try:
        Sidecar(run_dir).run()
    finally:
        os.close(lock)
        _stderr.drain()
    return 0


if __name__ == "__main__":
    sys.exit(main())
