"""``felix-py drain`` and ``undrain`` against an API server and a node's agent that does what it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from felix_py.cli import drain as command
from felix_py.cli.main import app
from felix_py.layout import DRAIN
from lab.apiserver.kubeconfig import write_kubeconfig
from tests.support import faults
from tests.support.fakeapi import NODE_STATUSES, NODES, FakeApi

RUNNER = CliRunner()


def annotation(server: FakeApi) -> str:
    """What the Node's annotation says."""
    found = server.objects[NODES, "", "n1"]["metadata"].get("annotations") or {}
    return str(found.get(DRAIN) or "")


def tell(server: FakeApi, asked: str, drained: bool, message: str, ready: str = "Ready") -> None:
    """Write the node's status, as its agent does."""
    conditions = [
        {"type": "Ready", "status": "True", "reason": ready, "message": ""},
        {"type": "Drained", "status": str(drained), "reason": "Because", "message": message},
    ]
    status = {"drain": asked, "conditions": conditions}
    server.put(NODE_STATUSES, {"metadata": {"name": "n1"}, "status": status})


class Agent:
    """Acts on the annotation when it changes: says first that it is at work, and once that was read, the end."""

    def __init__(self, server: FakeApi, taint: str = "") -> None:
        self._server, self._taint = server, taint
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Agent:
        tell(self._server, self._taint, bool(self._taint), "before")
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        with self._server.changed:
            self._stop = True
            self._server.changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        acted = ""
        while self._until(lambda: annotation(self._server) != acted):  # noqa: B023 - called at once
            acted = annotation(self._server)
            asked, looks = acted or self._taint, self._looks()
            tell(self._server, asked, not asked, "at work")
            self._until(lambda: self._looks() > looks)  # noqa: B023 - called at once
            tell(self._server, asked, bool(asked), "done" if asked else "as usual")

    def _until(self, condition: Callable[[], bool]) -> bool:
        """Wait; False if it ends before."""
        with self._server.changed:
            self._server.changed.wait_for(lambda: self._stop or condition())
            return not self._stop

    def _looks(self) -> int:
        return len([one for one in self._server.requests if one.path == f"{NODE_STATUSES}/n1"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr(command, "_LOOK", 0.01)
    with FakeApi() as server:
        server.install(NODE_STATUSES)
        server.put(NODES, {"metadata": {"name": "n1", "annotations": {"other": "kept"}}})
        yield server


@pytest.fixture
def run(server: FakeApi, tmp_path: Path) -> Callable[..., Result]:
    def run(*words: str) -> Result:
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        return RUNNER.invoke(app, [*words, "--kubeconfig", str(tmp_path / "kubeconfig")])

    return run


def test_there_and_back(server: FakeApi, run: Callable[..., Result]) -> None:
    with Agent(server):
        found = run("drain", "n1")
        assert (found.exit_code, found.stdout) == (0, "n1: done\n")
        assert "felix-py drain: n1: at work" in found.stderr
        first = annotation(server)
        assert first
        # A second one is not done by what the first one has left.
        found = run("drain", "n1")
        assert found.exit_code == 0
        assert "at work" in found.stderr
        assert annotation(server) != first
        found = run("undrain", "n1")
        assert (found.exit_code, found.stdout) == (0, "n1: as usual\n")
        assert server.objects[NODES, "", "n1"]["metadata"]["annotations"] == {"other": "kept"}


def test_a_taint_that_stays_is_named(server: FakeApi, run: Callable[..., Result]) -> None:
    with Agent(server, taint="taint"):
        assert run("drain", "n1").exit_code == 0
        found = run("undrain", "n1")
        assert found.exit_code == 1
        assert f"kubectl taint node n1 {DRAIN}-" in found.stderr


def silent(server: FakeApi) -> None:
    tell(server, "", False, "before")


def stopped(server: FakeApi) -> None:
    tell(server, "", False, "before", ready="AgentStopped")


def old(server: FakeApi) -> None:
    conditions = [{"type": "Ready", "status": "True", "reason": "Ready", "message": ""}]
    server.put(NODE_STATUSES, {"metadata": {"name": "n1"}, "status": {"conditions": conditions}})


def empty(server: FakeApi) -> None:
    server.put(NODE_STATUSES, {"metadata": {"name": "n1"}})


def absent(server: FakeApi) -> None:
    server.uninstall(NODE_STATUSES)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (silent, "has not noticed yet"),
        (stopped, "its agent is stopped"),
        (old, "of a version that cannot drain"),
        (empty, "says nothing yet"),
        (absent, "cannot be known"),
    ],
)
def test_an_agent_that_does_not_do_it(
    server: FakeApi, run: Callable[..., Result], state: Callable[[FakeApi], None], words: str
) -> None:
    state(server)
    found = run("drain", "n1", "--timeout", "0.05")
    assert found.exit_code == 1
    assert "n1 has not done so in 0.05 s: " in found.stderr
    assert words in found.stderr
    assert annotation(server), "it may do so later"
    assert run("drain", "n1", "--timeout", "0").stdout == "n1: asked, not waited for\n"


def test_what_the_server_refuses(server: FakeApi, run: Callable[..., Result]) -> None:
    found = run("drain", "n2")
    assert (found.exit_code, found.stderr) == (1, "felix-py drain: there is no node n2\n")
    server.fault("patch", faults.refuse(403, "Forbidden"))
    assert run("drain", "n1").exit_code == 1
    assert not annotation(server)
    server.fault("list", faults.refuse(403, "Forbidden"), path=f"{NODE_STATUSES}/n1")
    found = run("drain", "n1")
    assert found.exit_code == 1
    assert "Forbidden" in found.stderr


def test_a_server_that_is_away_for_a_moment(server: FakeApi, run: Callable[..., Result]) -> None:
    with Agent(server):
        for fault in (faults.reset, faults.refuse(503, "ServiceUnavailable")):
            server.fault("list", fault, path=f"{NODE_STATUSES}/n1")
        assert run("drain", "n1").exit_code == 0
    server.refuse()
    found = run("drain", "n1")
    assert found.exit_code == 1


def test_wrong_options(run: Callable[..., Result]) -> None:
    assert run("drain").exit_code == 2
    assert run("drain", "n1", "--timeout", "-1").exit_code == 2
