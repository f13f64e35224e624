"""Detection of kube-proxy's IPVS mode."""

from __future__ import annotations

import socket

INTERFACE = "kube-ipvs0"
"""kube-proxy binds all service addresses to this interface in IPVS mode, and only then."""


def in_ipvs_mode() -> bool:
    """Whether kube-proxy works in IPVS mode on this host, judging by its interface."""
    try:
        socket.if_nametoindex(INTERFACE)
    except OSError:
        return False
    return True
