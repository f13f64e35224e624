"""A real BIRD 2 in a network namespace: write a configuration, start, ask, stop."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.isolate import NetworkNamespace
from tests.support.started import Started
from tests.support.waiting import eventually


@dataclass(frozen=True)
class Written:
    """Routes that BIRD holds, and when each was written last: equal if none was written again in between. So it
    is with its sessions.

    BIRD converts the time anew for each answer, and it comes out a millisecond earlier or later.
    """

    shown: str
    at: tuple[float, ...] = field(compare=False)

    @classmethod
    def of(cls, shown: str) -> Written:
        """What ``birdc show route``, or ``show protocols``, says."""
        times = re.findall(r" (\d\d):(\d\d):(\d\d\.\d+)(?=[\]\s])", shown)
        at = tuple(3600 * int(hours) + 60 * int(minutes) + float(seconds) for hours, minutes, seconds in times)
        return cls(re.sub(r" \d\d:\d\d:\d\d\.\d+(?=[\]\s])", "", shown), at)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Written) or self.shown != other.shown:
            return False
        return all(abs(mine - its) < 0.01 for mine, its in zip(self.at, other.at, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Bird(Started):
    """One BIRD. All its files are in ``folder``."""

    def __init__(self, namespace: NetworkNamespace, folder: Path, config: str) -> None:
        if not shutil.which("bird"):
            pytest.skip("bird is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self._namespace = namespace
        self._folder = folder
        self._control = folder / "bird.ctl"
        self._process: subprocess.Popen[str] | None = None
        self.write(config)

    def write(self, config: str) -> None:
        """Replace the configuration file; a running BIRD takes it with ``birdc configure``."""
        (self._folder / "bird.conf").write_text(config)

    def start(self) -> None:
        """Start and wait until it answers."""
        argv = ["bird", "-f", "-c", str(self._folder / "bird.conf"), "-s", str(self._control)]
        with (self._folder / "bird.log").open("a") as log:
            self._process = self._namespace.popen(argv, stdout=log, stderr=log)
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "bird.log").read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._control)) == 0

    @property
    def pid(self) -> int:
        """Of the running BIRD."""
        assert self._process is not None
        return self._process.pid

    def birdc(self, *words: str) -> str:
        """Answer of one command."""
        argv = ["birdc", "-s", str(self._control), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def routes(self, protocol: str) -> set[str]:
        """Prefixes learned from one protocol that are in the tables now."""
        return set(
            re.findall(r"^(\S+/\d+) +\S+ \[", self.birdc("show", "route", "protocol", protocol), re.MULTILINE)
        )

    def written(self, *protocols: str) -> Written:
        """The routes learned from some protocols, with the times at which they were written."""
        return Written.of("".join(self.birdc("show", "route", "protocol", protocol) for protocol in protocols))

    def since(self, protocol: str) -> Written:
        """The state of a session, with the time at which it came to be in it."""
        return Written.of(self.birdc("show", "protocols", protocol))

    def count(self, protocol: str) -> int:
        """How many routes of one protocol are in the tables now."""
        counts = re.findall(
            r"^(\d+) of ", self.birdc("show", "route", "count", "protocol", protocol), re.MULTILINE
        )
        return sum(map(int, counts))

    def established(self, protocol: str) -> bool:
        """Whether a BGP session is up."""
        return "Established" in self.birdc("show", "protocols", protocol)

    def withdrawals(self, protocol: str) -> int:
        """Withdrawals received and routes removed since the protocol started."""
        match = re.search(r"Import withdraws: +(\d+)", self.birdc("show", "protocols", "all", protocol))
        return int(match[1]) if match else 0

    def stop(self, *, kill: bool = False) -> None:
        """Stop; ``kill``: as a crash would."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait(10)
        self._process = None
