"""Pods that are deleted while the agent is away, with the namespaces that the runtime removes at once."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from felix_py.ipam.beside import read_leases
from felix_py.layout import interface_name
from felix_py.records import Backend
from tests.support.agent_process import AgentProcess
from tests.support.fakeapi import FakeApi
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns"), pytest.mark.timeout(600)]
MakeNetns = Callable[[str], NetworkNamespace]


@contextmanager
def somebody_writes(spool: Path) -> Iterator[None]:
    """A client that has not come round to write its call: the agent does not work off its spool meanwhile."""
    client = os.open(spool, os.O_RDONLY)
    try:
        fcntl.flock(client, fcntl.LOCK_SH)
        yield
    finally:
        os.close(client)


def takes_calls(agent: AgentProcess) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(agent.run_dir / "cni.sock")) == 0


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_interfaces_that_go_before_the_spool_is_worked_off_are_no_drift(
    tmp_path: Path, make_netns: MakeNetns, backend: Backend
) -> None:
    """The runtime was told that they are deleted, and has removed the namespaces."""
    with FakeApi() as api:
        agent = AgentProcess(tmp_path, api, options=[f"--backend={backend}"])
        places = {name: make_netns(name) for name in ("stays", "goes-1", "goes-2")}
        spool = agent.run_dir / "spool"
        try:
            for name in places:
                agent.add_pod(name)
            agent.start()
            agent.wait_ready()
            for name, place in places.items():
                assert agent.call("ADD", name, place.path)[0] == 0
            agent.stop(signal.SIGKILL)
            for name in ("goes-1", "goes-2"):
                assert agent.call("DEL", name, places[name].path) == (0, {})
            assert len(list(spool.iterdir())) == 2
            before = agent.log.stat().st_size
            with somebody_writes(spool):
                agent.start()
                agent.until(lambda: takes_calls(agent), "an agent that takes calls")
                for name in ("goes-1", "goes-2"):
                    run("ip", "link", "del", interface_name(f"c-{name}", "eth0"))
                agent.wait_ready()
            agent.until(lambda: not list(spool.iterdir()), "the spool to be worked off")
            assert [lease.pod for lease in read_leases(tmp_path / "lib/leases.db")] == ["stays"]
            assert "somebody else has changed" not in agent.log.read_text()[before:]
        finally:
            agent.close()
