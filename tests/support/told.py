"""Facts that a test tells by hand."""

from __future__ import annotations

from typing import Any

from felix_py.agent.facts import Facts
from felix_py.agent.view import ClusterView
from policy.compile import Engine
from policy.model import Family


def new_facts(node: str = "n1", families: tuple[Family, ...] = tuple(Family), **more: Any) -> Facts:
    """Facts of nothing yet. ``more``: see :class:`Facts`."""
    return Facts(node, Engine(families), ClusterView(), **more)
