"""All that a network can leave on a node: what its kernel and its files hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.cluster.node import Node

_FOLDERS = "/etc/cni /opt/cni /var/lib /run /etc/felix-py"
_OF_OTHERS = re.compile(
    # kubelet's and containerd's own business, which goes on all the time, with its loopback plugin's.
    r"/var/lib/(cni/results|kubelet|containerd)(/.*)?"
    r"|/run/(containerd|netns|service|user|sysctl|lock|log)/.*|/run/xtables\.lock"
)
_ANYCAST = re.compile(r"anycast \S+ dev eth0 .*")
"""What a host gets as it begins to forward IPv6. That setting stays, since others may rely on it by now."""


def of_node(node: Node) -> Mapping[str, list[str]]:
    """What there is, by kind, each line by itself. kube-proxy's rules, which follow Services, are left out."""
    run = node.machine.run
    found: dict[str, list[str]] = {}
    for engine in ("nft", "legacy"):
        for tool in ("iptables", "ip6tables"):
            # The legacy tool makes the tables that it asks for, so only those that exist are asked for.
            tables = ["filter", "nat", "mangle", "raw"]
            if engine == "legacy":
                names = "ip_tables_names" if tool == "iptables" else "ip6_tables_names"
                tables = run("sh", "-c", f"cat /proc/net/{names} 2>/dev/null || true").split()
            text = "".join(run(f"{tool}-{engine}-save", "-t", table) for table in sorted(tables))
            found[f"{tool}-{engine}"] = [_without_counts(line) for line in text.splitlines() if _counts(line)]
    found["sets"] = run("ipset", "save").splitlines()
    for family in (4, 6):
        routes = run("ip", f"-{family}", "route", "show", "table", "all").splitlines()
        lasting = [re.sub(r" expires \S+", "", route).strip() for route in routes]
        found[f"routes of IPv{family}"] = [route for route in lasting if not _ANYCAST.fullmatch(route)]
        found[f"rules of IPv{family}"] = run("ip", f"-{family}", "rule").splitlines()
    found["links"] = [line.split(":")[1].strip() for line in run("ip", "-o", "link").splitlines()]
    files = run("sh", "-c", f"find {_FOLDERS} -xdev 2>/dev/null || true").splitlines()
    found["files"] = [path for path in files if not _OF_OTHERS.fullmatch(path)]
    return {kind: sorted(lines) for kind, lines in found.items()}


def differences(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    """What came and what went, in words."""
    found = []
    for kind, lines in before.items():
        found += [f"{kind}: came: {line}" for line in after[kind] if line not in lines]
        found += [f"{kind}: went: {line}" for line in lines if line not in after[kind]]
    return found


def _counts(line: str) -> bool:
    return not line.startswith("#") and "KUBE-" not in line and line != "COMMIT"


def _without_counts(line: str) -> str:
    return re.sub(r"\[\d+:\d+\]", "[0:0]", line)
