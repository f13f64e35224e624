"""Asking the agents of a lab's nodes: the one place that knows where an agent listens."""

from __future__ import annotations

import http.client
import os

from felix_py.observe.ask import connection
from lab.lab import Lab
from lab.state import LabError


def ask(lab: Lab, node: str, path: str, timeout: float) -> bytes:
    """GET from a node's agent: the body. ``timeout``: seconds to wait for each part of the answer.

    Raises:
        LabError: none answers, or with an error.
    """
    try:
        # By the folder's descriptor: a socket's path has 107 bytes at most (unix(7)), a lab's may have more.
        folder = os.open(lab.state.machine(node) / "run", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LabError(f"{node}: {error.strerror}") from None
    asked = connection(f"/proc/self/fd/{folder}/agent.sock", timeout)
    try:
        asked.request("GET", path)
        answer = asked.getresponse()
        body = answer.read()
    except TimeoutError:
        raise LabError(f"nothing for {timeout:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise LabError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None
    finally:
        asked.close()
        os.close(folder)
    if answer.status != 200:
        raise LabError(body.decode(errors="replace").strip() or f"HTTP {answer.status}")
    return body
