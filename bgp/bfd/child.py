"""The sidecar's end of the BFD process: there is one as long as a session is wanted."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bgp.bfd import settings
from bgp.restarts import Restarts

_END = 1.0
_CHUNK = 65536

Log = Callable[..., None]
"""Called with a level, a text and fields."""


class Child:
    """Starts the process, tells it what is wanted, passes its log on, and starts it again if it ends."""

    def __init__(self, folder: Path, log: Log) -> None:
        self._folder = folder
        self._log = log
        self._wanted = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = Restarts()
        self._partial = b""

    @property
    def output(self) -> int:
        """A descriptor to wait for before :meth:`supervise`; -1: none now."""
        return -1 if self._process is None or self._process.stdout is None else self._process.stdout.fileno()

    def want(self, text: str, now: float) -> None:
        """Have the sessions that are noted in an accepted configuration."""
        wanted = "".join(line + "\n" for line in text.splitlines() if settings.parse(line))
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if wanted and self._process is not None:
            self._tell()
        self.supervise(now)

    def supervise(self, now: float) -> None:
        """Take what the process says, and have it run or not as wanted."""
        if self._process is not None:
            self._pump()
            if self._process.poll() is not None:
                self._log("error", "BFD ended", code=self._process.returncode, again_in=self._restarts.delay)
                self._forget()
                self._restarts.failed(now)
            else:
                self._restarts.runs(now)
        if not self._wanted:
            self.stop()
        elif self._process is None and now >= self._restarts.due:
            try:
                self._start(now)
            except OSError as error:  # no process, no memory: BGP goes on without
                self._log("error", "BFD cannot be started", error=str(error), again_in=self._restarts.delay)
                self._restarts.failed(now)

    def stop(self) -> None:
        """End the process, which tells its peers so."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pump()
        self._forget()

    def _start(self, now: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bgp.bfd.speaker", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._restarts.started(now)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        self._log("info", "BFD started", pid=self._process.pid)
        self._tell()

    def _tell(self) -> None:
        """Say what is wanted; a process that does not take it is started anew."""
        assert self._process is not None
        assert self._process.stdin is not None
        text = self._wanted.encode() + b"\0"
        try:
            told = os.write(self._process.stdin.fileno(), text) == len(text)
        except OSError:
            told = False
        if not told:
            self._process.kill()

    def _pump(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.output, _CHUNK):
                *lines, self._partial = (self._partial + data).split(b"\n")
                self._partial = self._partial[-_CHUNK:]
                for line in lines:
                    self._pass_on(line.decode(errors="replace"))

    def _pass_on(self, line: str) -> None:
        level, _, rest = line.partition(" ")
        peer, _, text = rest.partition(" ")
        if level in ("info", "warning", "error") and text:
            self._log(level, text, component="bfd", **({} if peer == "-" else {"peer": peer}))
        elif line.strip():
            self._log("error", line, component="bfd")

    def _forget(self) -> None:
        assert self._process is not None
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process, self._partial = None, b""
