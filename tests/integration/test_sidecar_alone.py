"""The sidecar as a process: what it costs while nothing happens, and a log that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgp import bridge
from bgp.sidecar import CONFIG
from tests.support.bgp import NODE4, NODE_ASN, ROOT, TOR4, TOR_ASN, agent, config
from tests.support.bird import Bird
from tests.support.isolate import NetworkNamespace, run
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.root, pytest.mark.started, pytest.mark.usefixtures("netns")]

TOR = f"""
router id {TOR4};
protocol device {{ }}
protocol bgp node {{
  local as {TOR_ASN};
  neighbor {NODE4} as {NODE_ASN};
  connect delay time 1;
  ipv4 {{ import all; export none; }};
}}
"""
COMMANDS = {
    "module": [sys.executable, "-m", "bgp.sidecar"],
    "command": [str(Path(sys.executable).with_name("felix-py")), "bgp-sidecar"],
}


@contextlib.contextmanager
def sidecar(argv: list[str], run_dir: Path, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*argv, "--run-dir", str(run_dir)], cwd=ROOT, stderr=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def server(pid: int) -> int:
    """ExaBGP's process id; 0: it does not run."""
    with contextlib.suppress(OSError):
        for child in children(pid):
            if b"\0server\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return 0


@pytest.fixture
async def configured(netns: None, tmp_path: Path) -> Path:
    """A run folder in which an agent has written a configuration; it has left."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
    run("ip", "address", "add", "10.9.0.1/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up")
    async with agent(run_dir, config({"peerIP": "10.9.0.2", "asNumber": TOR_ASN})):
        await until((run_dir / CONFIG).exists)
    return run_dir


@pytest.mark.parametrize("how", COMMANDS)
def test_a_log_that_nobody_reads_stops_nothing(configured: Path, how: str) -> None:
    reader, writer = os.pipe()
    with (
        contextlib.closing(os.fdopen(reader, "rb")) as log,
        sidecar(COMMANDS[how], configured, writer) as process,
    ):
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4096)  # the pipe is full from the first line on
        os.set_blocking(writer, True)
        os.close(writer)
        first = eventually(lambda: server(process.pid), 20)
        os.kill(first, 9)
        eventually(lambda: server(process.pid) not in (0, first), 20)
        log.close()  # and now the reader is gone: EPIPE
        second = server(process.pid)
        os.kill(second, 9)
        eventually(lambda: server(process.pid) not in (0, second), 20)
        process.terminate()
        assert process.wait(10) == 0


def test_log_to_a_full_device(configured: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with sidecar(COMMANDS["module"], configured, full) as process:
        os.close(full)
        eventually(lambda: server(process.pid), 20)
        process.terminate()
        assert process.wait(10) == 0


def test_the_command_keeps_none_of_the_command_lines_libraries(tmp_path: Path) -> None:
    with sidecar(COMMANDS["command"], tmp_path, subprocess.DEVNULL) as process:
        eventually(lambda: (tmp_path / "sidecar.lock").exists(), 20)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        assert "msgspec" not in maps
        assert b"bgp.sidecar" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        rss = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert rss < 25e6, "it was 42 MB"


async def test_idling_is_cheap(tmp_path: Path, tor: NetworkNamespace) -> None:
    """Voluntary switches are turns of a loop: a count that no load on the machine makes larger."""
    run_dir = tmp_path / "run"

    def turns(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])

    with (
        Bird(tor, tmp_path / "tor", TOR),
        sidecar(COMMANDS["module"], run_dir, subprocess.DEVNULL) as process,
    ):
        async with agent(run_dir, config({"peerIP": TOR4, "asNumber": TOR_ASN}), announce=set()) as node:
            await until(node.up, 60)
            await asyncio.sleep(bridge._START + bridge._CHANGE)  # sessions may come and go, so it is quick
            exabgp = server(process.pid)
            [helper] = children(exabgp)
            before = {pid: turns(pid) for pid in (process.pid, exabgp, helper)}
            await asyncio.sleep(5)
            grown = {pid: turns(pid) - count for pid, count in before.items()}
            assert grown[process.pid] <= 15, grown
            assert grown[exabgp] <= 150, grown  # of a hundred a second as it comes
            assert grown[helper] <= 50, grown
