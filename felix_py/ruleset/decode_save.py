"""The output of iptables-save, of either backend -> records. No I/O."""

from __future__ import annotations

import re

from felix_py.ruleset.model import Chain, Rule, Ruleset, Table
from felix_py.ruleset.seal import identified
from felix_py.ruleset.words import parse_text
from policy.model import Family

_COUNTERS = re.compile(r"\[\d+:\d+\] ")


def decode(family: Family, text: str) -> Ruleset:
    """All tables in the text. Lines that are no rules, chains or tables are skipped."""
    tables: dict[str, Table] = {}
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    table = ""

    def close() -> None:
        if table:
            chains = {
                name: Chain(name, identified(name, rules.get(name, ())), policy)
                for name, policy in policies.items()
            }
            tables[table] = Table(table, chains)

    # Not splitlines(): it also splits at other characters, which a comment may hold.
    for counted in text.split("\n"):
        line = _COUNTERS.sub("", counted, count=1) if counted.startswith("[") else counted
        if line.startswith("*"):
            close()
            table, policies, rules = line[1:].strip(), {}, {}
        elif line.startswith(":"):
            name, policy = (*line[1:].split(" ", 2), "-")[:2]
            policies[name] = policy if policy != "-" else ""
        elif line.startswith("-A "):
            _, name, rule = (*line.split(" ", 2), "")[:3]
            policies.setdefault(name, "")
            rules.setdefault(name, []).append(parse_text(rule))
    close()
    return Ruleset(family, tables)
