"""Whether kube-proxy works in IPVS mode on this host."""

from __future__ import annotations

import socket

INTERFACE = "kube-ipvs0"
"""kube-proxy binds the addresses of all services to it in this mode, and in no other."""


def in_ipvs_mode() -> bool:
    """Whether services are IPVS's, as far as kube-proxy leaves a trace."""
    try:
        socket.if_nametoindex(INTERFACE)
    except OSError:
        return False
    return True
