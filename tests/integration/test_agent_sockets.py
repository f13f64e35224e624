"""The agent's sockets against those who are on the node and have no rights: what they can see, and starve."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from felix_py.observe import ask
from tests.support.agent_process import AgentProcess
from tests.support.fakeapi import POLICIES, FakeApi
from tests.support.isolate import NetworkNamespace

pytestmark = pytest.mark.root

NOBODY = 65534
BECOME_NOBODY = f"""
import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""
SILENT = """
held = []
for _ in range(1500):
    one = socket.socket()
    one.settimeout(0.2)
    try:
        one.connect(("127.0.0.1", 9099))
    except OSError:
        continue
    held.append(one)
print(len(held), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def agent(tmp_path: Path, netns: None) -> Iterator[AgentProcess]:
    with FakeApi() as api:
        denied = {"podSelector": {}, "policyTypes": ["Ingress"]}
        api.put(POLICIES, {"metadata": {"name": "deny", "namespace": "default"}, "spec": denied})
        agent = AgentProcess(tmp_path, api, options=["--backend=nft", "--refresh-interval=1"])
        agent.add_pod("pod-0")
        # As a systemd service: 1,024, and here no right to more.
        agent.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024)))
        try:
            agent.wait_ready()
            yield agent
        finally:
            agent.close()


def test_thousands_of_silent_connections_of_anybody_starve_nobody(
    agent: AgentProcess, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    place = make_netns("pod")
    silent = subprocess.Popen(  # with as many descriptors as it likes
        [sys.executable, "-c", BECOME_NOBODY + SILENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert silent.stdout is not None
        assert int(silent.stdout.readline()) > 500
        assert len(os.listdir(f"/proc/{agent.pid}/fd")) < 300
        assert agent.call("ADD", "pod-0", place.path)[0] == 0
        assert agent.get("/healthz")[0] == 200
        before = agent.get("/metrics")[1]
        agent.until(lambda: compared(agent) < 1.0, "a refresh")
        assert agent.call("DEL", "pod-0", place.path)[0] == 0
        assert "felix_py_drift_total" in before
        drift = [
            line for line in agent.get("/metrics")[1].splitlines() if line.startswith("felix_py_drift_total")
        ]
        assert all(line.endswith(" 0.0") for line in drift), drift
    finally:
        silent.communicate()
    assert agent.log.stat().st_size < 100_000


def compared(agent: AgentProcess) -> float:
    lines = agent.get("/metrics")[1].splitlines()
    (age,) = [line.split()[1] for line in lines if line.startswith("felix_py_compared_age_seconds ")]
    return float(age)


def test_who_talks_to_whom_is_told_to_root_and_the_sockets_group_only(agent: AgentProcess) -> None:
    assert agent.get("/metrics")[0] == 200
    for path in ("/status", "/flows", "/denies"):
        assert agent.get(path)[0] == 404
        with closing(ask.connection(str(agent.run_dir / "agent.sock"), 10)) as asked:
            asked.request("GET", path)
            answer = asked.getresponse()
            assert answer.status == 200
            json.loads(answer.read())
    found = (agent.run_dir / "agent.sock").stat()
    assert stat.S_IMODE(found.st_mode) == 0o660
    assert (found.st_uid, found.st_gid) == (0, 0)
    agent.folder.chmod(0o755)
    for parent in agent.folder.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    script = f"import socket; socket.socket(socket.AF_UNIX).connect({str(agent.run_dir / 'agent.sock')!r})"
    done = subprocess.run(
        [sys.executable, "-c", BECOME_NOBODY + script], capture_output=True, text=True, check=False
    )
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_socket_that_somebody_has_removed_is_made_again(agent: AgentProcess, number: int) -> None:
    path = agent.run_dir / "agent.sock"
    before = path.stat()
    with closing(ask.connection(str(path), 60)) as kept:
        kept.request("GET", "/status")
        kept.getresponse().read()
        path.unlink()
        agent.until(path.exists, "another socket")
        for asked in (kept, ask.connection(str(path), 60)):
            asked.request("GET", "/status")
            assert json.loads(asked.getresponse().read())["node"] == "node-1"
            asked.close()
    found = path.stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    agent.stop(number)
    assert path.exists() == (number == signal.SIGKILL)
    agent.start()
    agent.wait_ready()
    with closing(ask.connection(str(path), 60)) as asked:
        asked.request("GET", "/status")
        assert asked.getresponse().status == 200


def test_the_group_is_a_setting_and_the_socket_goes_with_the_agent(tmp_path: Path, netns: None) -> None:
    with FakeApi() as api:
        agent = AgentProcess(tmp_path, api, options=["--backend=nft", "--socket-group=12345"])
        agent.start()
        try:
            agent.wait_ready()
            assert (agent.run_dir / "agent.sock").stat().st_gid == 12345
            second = AgentProcess(tmp_path, api, options=["--backend=nft", "--health-address=127.0.0.1:9098"])
            second.start()
            assert second.wait() == 1
            assert "is in use: another felix-py agent runs on this node" in agent.log.read_text()
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(agent.run_dir / "agent.sock"))
            assert agent.stop()[0] == 0
            assert not (agent.run_dir / "agent.sock").exists()
        finally:
            agent.close()
        wrong = AgentProcess(tmp_path, api, options=["--backend=nft", "--socket-group=no-such-group"])
        wrong.start()
        assert wrong.wait() == 1
        assert "--socket-group no-such-group: there is no such group" in wrong.log.read_text()
