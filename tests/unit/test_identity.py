"""Whether this host is the node of its name."""

from __future__ import annotations

import pytest

from felix_py.observe.identity import told
from felix_py.records import NodeRecord

HERE = frozenset({"127.0.0.1", "::1", "192.0.2.1", "2001:db8::1"})


@pytest.mark.parametrize(
    "node",
    [
        None,
        NodeRecord("n1"),
        NodeRecord("n1", addresses=("192.0.2.1",)),
        # An ExternalIP may be a translation's; one family may not be here yet.
        NodeRecord("n1", addresses=("192.0.2.1", "203.0.113.7")),
        NodeRecord("n1", addresses=("192.0.2.99", "2001:db8::1")),
    ],
)
def test_a_host_that_may_be_the_node(node: NodeRecord | None) -> None:
    assert told(node, HERE) == {}


def test_another_machine_s_node() -> None:
    (text,) = told(NodeRecord("n1", addresses=("192.0.2.7", "2001:db8::7")), HERE).values()
    assert text.startswith(
        "the Node object n1 has the addresses 192.0.2.7, 2001:db8::7, and this host has none of"
    )
