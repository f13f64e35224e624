"""What the kernel holds, as the distribution's own tools print it: an opinion independent of our code."""

from __future__ import annotations

import json
import re

from felix_py.records import Backend
from policy.model import Family
from tests.support.isolate import run


def saved(family: Family, backend: Backend) -> str:
    """iptables-save without the lines that change from run to run."""
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}-save"
    text = re.sub(r"\[\d+:\d+\]", "[0:0]", run(tool))
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def rules(family: Family, backend: Backend, table: str, chain: str) -> list[str]:
    """The rules of one chain, in order."""
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}-save"
    text = run(tool, "-t", table) if f"*{table}\n" in run(tool) else ""
    start = f"-A {chain} "
    return [line.removeprefix(start) for line in text.split("\n") if line.startswith(start)]


def sets() -> dict[str, list[str]]:
    """Members of each IP set, sorted, as ``ipset save`` prints them."""
    return _members(run("ipset", "save"))


def set_types() -> dict[str, str]:
    """Type of each IP set, and its creation options as far as they are the same on every run."""
    return _types(run("ipset", "save"))


def _members(saved_sets: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in saved_sets.splitlines():
        command, name, rest = line.split(" ", 2)
        if command == "create":
            found[name] = []
        else:
            found[name].append(rest)
    return {name: sorted(members) for name, members in found.items()}


def _types(saved_sets: str) -> dict[str, str]:
    lines = [line.split() for line in saved_sets.splitlines() if line.startswith("create")]
    return {words[1]: " ".join([words[2], *(word for word in words[3:] if word == "skbinfo")]) for words in lines}


def routes(family: Family) -> list[str]:
    """The main table as ``ip`` prints it, without what the kernel puts there itself, sorted."""
    found = json.loads(run("ip", "-j", f"-{int(family)}", "route", "show", "table", "main"))
    lines: list[str] = []
    for route in found:
        if route.get("protocol") == "kernel":
            continue
        hops = route.get("nexthops", [route])
        via = sorted(f"{hop.get('gateway', '')}%{hop.get('dev', '')}" for hop in hops)
        kind = route.get("type", "unicast")
        where = "" if kind == "blackhole" else " ".join(via)
        lines.append(
            f"{kind} {route['dst']} proto {route.get('protocol', '')} {where} {route.get('scope', '')}".rstrip()
        )
    return sorted(lines)


def everything(backend: Backend) -> dict[str, object]:
    """All of the above, both families."""
    saved_sets = run("ipset", "save")
    return {
        "sets": _members(saved_sets),
        "set types": _types(saved_sets),
        **{f"rules{family}": saved(family, backend) for family in Family},
        **{f"routes{family}": routes(family) for family in Family},
    }
