"""What a node's address store holds, read from its file, whose lock the agent keeps."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing

from tests.cluster.machine import CommandFailed
from tests.cluster.node import Node


def held(node: Node) -> list[tuple[str, str]]:
    """``NAMESPACE/NAME`` of pods and their primary addresses, one for each lease.

    Raises:
        CommandFailed: the file was being written; ask again.
    """
    path = node.machine.path("/var/lib/felix-py/leases.db")
    try:
        with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as store:
            rows = store.execute("SELECT namespace || '/' || pod, coalesce(v4, v6) FROM held")
            return [(str(pod), str(address)) for pod, address in rows]
    except sqlite3.Error as error:
        raise CommandFailed(f"{path} as it is being written: {error}") from None


def leases(node: Node) -> Counter[str]:
    """How many leases each pod has."""
    return Counter(pod for pod, _ in held(node))
