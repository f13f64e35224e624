"""The health endpoint's socket is there before its server is: who asks early waits, and is answered."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from felix_py.cni.server import listen_at
from felix_py.config import ConfigError
from felix_py.observe.health import HealthServer
from felix_py.observe.listener import listen, remove


async def nothing() -> None:
    pass


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
async def test_who_asks_before_anybody_answers_is_answered(address: str) -> None:
    listener = listen(address)
    host, port = listener.getsockname()[:2]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    await writer.drain()
    server = HealthServer(CollectorRegistry(), dict, dict, nothing)
    await server.start(listener)
    async with asyncio.timeout(10):
        assert (await reader.read()).endswith(b"ok\n")
    writer.close()
    await server.stop()


def test_an_address_in_use_is_told_at_once() -> None:
    with (
        listen("127.0.0.1:0") as first,
        pytest.raises(ConfigError, match=r"--health-address 127\.0\.0\.1:\d+: Address already in use"),
    ):
        listen(f"127.0.0.1:{first.getsockname()[1]}")


def test_a_socket_is_taken_away_only_while_it_is_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with listen_at(path, 1):
        ours = path.stat().st_ino
        path.rename(tmp_path / "old")  # else the new one may get its inode number
        with listen_at(path, 1):
            remove(path, ours)
            assert path.exists()
            remove(path, path.stat().st_ino)
            assert not path.exists()
            remove(path, ours)


def test_what_no_verdict_needs_is_not_loaded_before_there_is_one() -> None:
    code = "import sys, felix_py.cli.agent, felix_py.agent.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"aiohttp", "kubernetes", "requests", "pyroute2", "iptc", "exabgp"} & set(loaded)
