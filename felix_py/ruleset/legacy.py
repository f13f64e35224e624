"""The legacy tables, decoded by python-iptables from the kernel's binary, independently of the tools.

``python -m felix_py.ruleset.legacy FAMILY`` prints them as JSON. :func:`read` always starts it as a process of
its own, because python-iptables 1.2 keeps the tables of the first network namespace that it saw, is not
thread-safe, and redirects file descriptor 1 for a moment at each decoded option. Opening a table creates it, so
only tables that the kernel lists are opened; and since the library looks into every table to tell a chain from an
extension, unlisted tables are declared absent beforehand. It takes no xtables lock, so this module does. It never
writes.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from felix_py.ruleset.model import Body, Chain, OpaqueMatch, OpaqueTarget, Rule, Ruleset, Table
from felix_py.ruleset.seal import identified
from felix_py.ruleset.words import join, network, split, to_rule
from policy.model import Family

_TABLES = ("raw", "mangle", "nat", "filter", "security")
_LOCK = "/run/xtables.lock"
_LOCK_SECONDS = 10.0
_PROTOCOL_ICMPV6 = 58
_NAMES = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", _PROTOCOL_ICMPV6: "ipv6-icmp"}
_INVERTED_PROTOCOL = 0x40
_FRAGMENT, _INVERTED_FRAGMENT = 0x01, 0x20
"""Bits of ``flags`` and ``invflags`` (xt_entry: x_tables.h, ip_tables.h)."""

_ANYWHERE = ("0.0.0.0/0.0.0.0", "::/0")
_TIMEOUT = 120.0
_BROKEN = ""
"""First word of a rule that cannot be decoded; the second says why."""


class LegacyError(Exception):
    """The tables could not be read; the message is for people."""


def read(family: Family) -> Ruleset:
    """All existing legacy tables of the calling thread's network namespace; LegacyError: they are unreadable."""
    argv = [sys.executable, "-m", __name__, str(int(family))]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LegacyError(f"cannot read the legacy tables: {error}") from error
    if done.returncode:
        words = done.stderr.strip().rpartition("\n")[2]
        raise LegacyError(f"cannot read the legacy tables: {words or f'exit status {done.returncode}'}")
    return from_json(family, json.loads(done.stdout))


def from_json(family: Family, found: dict[str, dict[str, dict[str, Any]]]) -> Ruleset:
    """Convert the process's output: table -> chain -> policy and rules, each a list of words."""
    tables = {}
    for table, chains in found.items():
        tables[table] = Table(
            table,
            {
                name: Chain(name, identified(name, tuple(map(_rule, of["rules"]))), of["policy"])
                for name, of in chains.items()
            },
        )
    return Ruleset(family, tables)


def _rule(words: list[str]) -> Rule:
    if words[:1] == [_BROKEN]:
        return Rule(Body((OpaqueMatch("", tuple(words[1:])),), OpaqueTarget("")), " ".join(words[1:]))
    return to_rule(words, join(words))


# --- the process of its own --------------------------------------------------------------------------


def _listed(family: Family) -> list[str]:
    """The existing tables; /proc/thread-self is in the thread's own network namespace."""
    name = "ip_tables_names" if family is Family.V4 else "ip6_tables_names"
    path = Path("/proc/thread-self/net", name)
    names = path.read_text().split() if path.exists() else []
    return [table for table in _TABLES if table in names]


def _take_lock() -> None:
    """Take the tools' write lock as xtables_lock() does, until the process ends."""
    path = os.environ.get("XTABLES_LOCKFILE", _LOCK)
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another program holds {path}") from None
            time.sleep(0.02)


def _dump(family: Family) -> dict[str, dict[str, dict[str, Any]]]:
    listed = _listed(family)
    if not listed:
        return {}
    import iptc
    from iptc import ip4tc, ip6tc

    kind: Any = iptc.Table if family is Family.V4 else iptc.Table6
    known = ip4tc.Table.existing_table_names if family is Family.V4 else ip6tc.Table6.existing_table_names
    known.update({name: name in listed for name in kind.ALL})
    _take_lock()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in listed:
        table = kind(name, autocommit=False)
        table.refresh()
        found[name] = {chain.name: _dump_chain(table, chain) for chain in table.chains}
    return found


def _dump_chain(table: Any, chain: Any) -> dict[str, Any]:
    policy = chain.get_policy() if table.builtin_chain(chain.name) else None
    return {"policy": policy.name if policy else "", "rules": list(_dump_rules(table, chain))}


def _dump_rules(table: Any, chain: Any) -> Iterator[list[str]]:
    entry = table.first_rule(chain.name)
    while entry:
        try:
            yield list(_words(table, table.create_rule(entry, chain), entry))
        except Exception as error:
            # An extension without its library here, or one that python-iptables cannot decode.
            yield [_BROKEN, f"cannot be decoded: {type(error).__name__}: {error}"]
        entry = table.next_rule(entry)


def _words(table: Any, rule: Any, entry: Any) -> Iterator[str]:
    yield from _head(rule)
    for match in rule.matches:
        yield from ("-m", match.name)
        yield from _saved(match, rule)
    if name := (table.get_target(entry) or b"").decode():
        yield from ("-g" if rule.target.goto else "-j", name)
        yield from _saved(rule.target, rule)


def _saved(extension: Any, rule: Any) -> Iterator[str]:
    """The options as the extension's C code prints them; ``get_all_parameters`` reads them as a shell does."""
    buffer = extension._get_saved_buf(rule.get_ip())
    return split(buffer.decode(errors="surrogateescape") if buffer else "")


def _head(rule: Any) -> Iterator[str]:
    ip = rule.get_ip()
    for option, value in (("-s", rule.src), ("-d", rule.dst)):
        if value not in _ANYWHERE:
            where = network(value.removeprefix("!"))
            yield from (*(("!",) if value.startswith("!") else ()), option, where)
    for option, value in (("-i", rule.in_interface), ("-o", rule.out_interface)):
        if value:
            yield from _negatable(option, value)
    if ip.proto:
        if ip.invflags & _INVERTED_PROTOCOL:
            yield "!"
        yield from ("-p", _NAMES.get(ip.proto, str(ip.proto)))
    if hasattr(ip, "IPT_F_FRAG") and ip.flags & _FRAGMENT:
        if ip.invflags & _INVERTED_FRAGMENT:
            yield "!"
        yield "-f"


def _negatable(option: str, value: str) -> Iterator[str]:
    if value.startswith("!"):
        yield "!"
    yield from (option, value.removeprefix("!"))


def main() -> None:
    """Print the tables. Nothing else, as from the C code that decodes, may reach standard output."""
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        text = json.dumps(_dump(Family(int(sys.argv[1]))))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    with open(out, "w") as stream:
        stream.write(text)


if __name__ == "__main__":
    main()
