"""Records as tests need them most: one line for what matters, defaults for the rest."""

from __future__ import annotations

from typing import Any

from felix_py.layout import interface_name
from felix_py.records import Lease
from policy.model import Family, LocalEndpoint, NetworkPolicy, Operator, Pod, Requirement, Selector


def labelled(**labels: str) -> Selector:
    """Selects what has all of these labels."""
    return Selector(tuple(Requirement(key, Operator.IN, (value,)) for key, value in sorted(labels.items())))


def policy(name: str, selector: Selector | None = None, **rules: Any) -> NetworkPolicy:
    """A policy of the namespace shop, by default for all of its pods. ``rules``: ``ingress``, ``egress``."""
    return NetworkPolicy("shop", name, selector or Selector(), **rules)


def lease(of: Pod | LocalEndpoint, *, container: str = "", created: float = 1.0) -> Lease:
    """What a pod's eth0 holds; its container is called as the pod unless told otherwise."""
    container = container or of.name
    addresses = {Family.V6 if ":" in address else Family.V4: address for address in of.addresses}
    host = interface_name(container, "eth0")
    return Lease(container, "eth0", "n", of.namespace, of.name, of.uid, host, addresses, created)
