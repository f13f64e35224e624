"""Asking the agent of a lab's node, wherever the lab's folder is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.agents import ask
from lab.lab import Lab
from lab.state import LabError


@contextmanager
def agent(lab: Lab, answer: bytes | None) -> Iterator[None]:
    """Somebody who listens as node1's agent does; with None it never answers."""
    folder = lab.state.machine("node1") / "run"
    folder.mkdir(parents=True)
    fd = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{fd}/agent.sock")
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer or b"")

        thread = threading.Thread(target=serve, daemon=True)
        if answer is not None:
            thread.start()
        yield
        if answer is not None:
            thread.join()
    os.close(fd)


def response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture(params=["near", "deep"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Lab:
    """Deep: a path that no socket's address has room for."""
    return Lab("lab", tmp_path / ("d" * 120) if request.param == "deep" else tmp_path)


def test_the_answer_is_the_body(lab: Lab) -> None:
    with agent(lab, response("200 OK", b"{}")):
        assert ask(lab, "node1", "/status", 30) == b"{}"


def test_an_error_is_told_in_the_agents_words(lab: Lab) -> None:
    with (
        agent(lab, response("503 Service Unavailable", b"not yet\n")),
        pytest.raises(LabError, match=r"^not yet$"),
    ):
        ask(lab, "node1", "/status", 30)


def test_an_agent_that_hangs_is_not_waited_for(lab: Lab) -> None:
    with agent(lab, None), pytest.raises(LabError, match="nothing for 2 s"):
        ask(lab, "node1", "/status", 2)


def test_no_agent(lab: Lab) -> None:
    with pytest.raises(LabError, match="No such file or directory"):
        ask(lab, "node1", "/status", 2)
    (lab.state.machine("node1") / "run").mkdir(parents=True)
    with pytest.raises(LabError, match="No such file or directory"):
        ask(lab, "node1", "/status", 2)
