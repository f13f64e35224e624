"""Specs of IPPool and IPReservation in which every field is set, to something else than its default."""

from __future__ import annotations

from typing import Any

POOL: dict[str, Any] = {
    "cidr": "10.64.0.0/16",
    "blockSize": 28,
    "nodeSelector": "zone == 'a'",
    "namespaceSelector": "has(team)",
    "natOutgoing": True,
    "disabled": True,
    "disableBGPExport": True,
    "allowedUses": ["Workload", "LoadBalancer"],
    "assignmentMode": "Manual",
}

RESERVATION: dict[str, Any] = {"reservedCIDRs": ["10.64.0.0/30", "10.64.1.5/32", "fd00::/124"]}
