"""``felix-py ipam`` on a real agent: what it shows, finds, repairs, releases and remembers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from felix_py.cli.main import app
from felix_py.layout import interface_name
from tests.support import fakeapi
from tests.support.agent_process import AgentProcess
from tests.support.cni import host_interfaces
from tests.support.fakeapi import FakeApi
from tests.support.isolate import NetworkNamespace, run

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]
MakeNetns = Callable[[str], NetworkNamespace]


AS_NOBODY = """
import http.client, os, socket, sys
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
asked = http.client.HTTPConnection("agent")
asked.sock = socket.socket(socket.AF_UNIX)
asked.sock.connect(sys.argv[1])
asked.request("POST", sys.argv[2])
answer = asked.getresponse()
print(answer.status, answer.read().decode(), end="")
"""


@pytest.fixture
def agent(make_netns: MakeNetns) -> Iterator[AgentProcess]:
    """A ready agent with the pods one, two and three, whose socket the group nogroup may use."""
    folder = Path(tempfile.mkdtemp(prefix="felix-py-ipam-"))
    folder.chmod(0o755)
    with FakeApi() as api:
        agent = AgentProcess(folder, api, options=["--backend=nft", "--socket-group=nogroup"])
        try:
            agent.start()
            agent.wait_ready()
            for name in ("one", "two", "three"):
                agent.add_pod(name)
                code, answer = agent.call("ADD", name, make_netns(name).path)
                assert code == 0, answer
            yield agent
        finally:
            agent.close()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ipam(agent: AgentProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """The command: its exit code, and what it printed. The runtime is a script that knows pods one and two."""
    tools = agent.folder / "tools"
    tools.mkdir()
    (tools / "crictl").write_text("#!/bin/sh\necho c-one; echo c-two\n")
    (tools / "crictl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FELIX_PY_AGENT_SOCKET", str(agent.run_dir / "agent.sock"))
    monkeypatch.setenv("FELIX_PY_STATE_DIR", str(agent.folder / "lib"))
    monkeypatch.setattr("felix_py.cli.ipam._GRACE", 5)

    def call(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["ipam", *words])
        table = not {"--json", "-o"} & set(words)
        assert not table or all(len(line) <= 100 for line in done.stdout.splitlines()), done.stdout
        return done.exit_code, done.output

    return call


def words(text: str) -> str:
    """Without the ends of lines."""
    return " ".join(text.split())


def test_show_check_release_and_history(agent: AgentProcess, ipam: Callable[..., tuple[int, str]]) -> None:
    code, text = ipam("show")
    assert code == 0
    assert ["10.65.0.0/24", "3", "251", "0", "0"] in [line.split() for line in text.splitlines()]
    row = ["10.65.0.2", "default/two", interface_name("c-two", "eth0"), "c-two"]
    assert row in [line.split()[:4] for line in text.splitlines()]
    leases = json.loads(ipam("show", "--json")[1])["leases"]
    assert [(lease["pod"], lease["addresses"]) for lease in leases] == [
        ("one", ["10.65.0.1"]),
        ("two", ["10.65.0.2"]),
        ("three", ["10.65.0.3"]),
    ]
    # The runtime does not know the sandbox of pod three; else all is well.
    code, text = ipam("check")
    forgotten = (
        "10.65.0.3: leased to pod default/three, of whose sandbox c-three the container runtime knows nothing"
    )
    assert (code, words(text)) == (1, forgotten)
    # Pod two is lost: neither API nor kernel know it. The interface of pod one is gone, but the pod is there.
    agent.api.delete(fakeapi.PODS, "default", "two")
    for name in ("one", "two"):
        run("ip", "link", "del", interface_name(f"c-{name}", "eth0"))
    run("ip", "link", "add", "felix0123456789", "type", "veth", "peer", "name", "nobody")
    agent.until(lambda: "10.65.0.2: leased to pod default/two, but its interface" in words(ipam("check")[1]))
    found = json.loads(ipam("check", "-o", "json")[1])["differences"]
    assert {(*one["addresses"], one["lost"]) for one in found} == {
        ("10.65.0.1", False),
        ("10.65.0.2", True),
        ("10.65.0.3", False),
        (False,),
    }
    agent.until(lambda: json.loads(ipam("check", "--json")[1])["differences"][1]["lost"])
    code, text = ipam("check", "--fix")
    assert code == 1
    assert "released 10.65.0.2 of pod default/two" in text
    text = words(text)
    assert "and its DEL has not come" in text
    assert "felix0123456789 is like those of pods" in text
    # By hand.
    assert ipam("release", "10.65.0.1") == (0, "released 10.65.0.1 of pod default/one\n")
    code, text = ipam("release", "10.65.0.3")
    assert (code, "its interface" in text, "exists" in text) == (1, True, True)
    assert interface_name("c-three", "eth0") in host_interfaces()
    assert ipam("release", "10.65.0.3", "--force") == (0, "released 10.65.0.3 of pod default/three\n")
    assert interface_name("c-three", "eth0") not in host_interfaces()
    code, text = ipam("release", "10.65.0.3")
    assert (code, "is not leased on this node; it was released" in text) == (1, True)
    assert ipam("release", "nobody")[0] == 2
    assert json.loads(ipam("show", "-o", "json")[1])["cidrs"][0]["resting"] == 3
    assert ipam("history", "10.65.0.2")[1].count("default/two") == 2
    told = json.loads(ipam("history", "-n", "2", "--json")[1])["history"]
    assert [(entry["what"], entry["pod"]) for entry in told] == [("released", "one"), ("released", "three")]
    assert ipam("history", "no-such-pod") == (1, "nothing is known of it\n")


def test_a_pod_without_lease_is_named_and_only_root_releases(
    agent: AgentProcess, ipam: Callable[..., tuple[int, str]]
) -> None:
    pod = fakeapi.pod("stranger")
    pod["spec"]["nodeName"] = "node-1"
    pod["status"] = {"phase": "Running", "podIPs": [{"ip": "10.65.0.99"}]}
    agent.api.put(fakeapi.PODS, pod)
    text = "10.65.0.99: the API lists it for pod default/stranger, which has no lease of it"
    agent.until(lambda: text in words(ipam("check")[1]), "the pod is known")
    path = "/ipam/release?address=10.65.0.1&force=1"
    argv = [sys.executable, "-c", AS_NOBODY, str(agent.run_dir / "agent.sock"), path]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "403 only root may release addresses\n"
    assert "10.65.0.1 " in ipam("show")[1]
    agent.stop()
    code, text = ipam("show")
    assert (code, "no agent answers" in text) == (1, True)
    assert ipam("history", "default/one")[0] == 0
