"""A stand-in for kube-proxy that is real in what matters: a process that rewrites its own chains again and again.

Like kube-proxy it writes thousands of rules in nat and filter with one ``iptables-restore --noflush -w`` a round:
some services' chains anew, some new ones, some deleted, and its jumps where they are missing. Unlike it, it first
looks whether all that it wrote is still there.

Run as ``python -m tests.support.kube_proxy BACKEND``; it goes on until its stdin is closed. It prints a JSON
object a round.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field

SERVICES = 300
_CHANGED = 60
"""Services that a round writes anew; some of them come or go."""

_JUMPS = {
    ("nat", "PREROUTING"): "KUBE-SERVICES",
    ("nat", "OUTPUT"): "KUBE-SERVICES",
    ("filter", "FORWARD"): "KUBE-FORWARD",
    ("filter", "INPUT"): "KUBE-FIREWALL",
}
Chains = dict[str, list[str]]


@dataclass
class Round:
    """One family's round: what was ``lost`` of that which was written before, complaints of save and restore, how
    many rules it wrote and holds."""

    number: int
    family: int
    lost: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    written: int = 0
    rules: int = 0


class Proxy:
    """One family's rules."""

    def __init__(self, family: int, backend: str, seed: int) -> None:
        self._family = family
        self._tool = f"{'iptables' if family == 4 else 'ip6tables'}-{backend}"
        self._random = random.Random(seed)
        self._services: dict[int, int] = {}
        self._held: dict[str, Chains] = {"nat": {}, "filter": {}}
        self._rounds = 0

    def round(self) -> Round:
        """Look, then write."""
        self._rounds += 1
        report = Round(self._rounds, self._family)
        actual, jumps = self._read(report)
        report.lost = self._missing(actual, jumps)
        changed = self._random.sample(range(SERVICES), _CHANGED if self._services else SERVICES)
        for service in changed:
            if service in self._services and self._random.random() < 0.3:
                del self._services[service]
            else:
                self._services[service] = self._random.randint(1, 8)
        wanted = self._wanted()
        text = self._transaction(wanted, jumps)
        while (complaint := self._restore(text)) and len(report.retried) < 20:
            report.retried.append(complaint)
            # It may have written one table and not the other.
            text = self._transaction(wanted, self._read(report)[1])
        self._held = wanted
        report.written = text.count("\n-A ")
        report.rules = sum(len(rules) for chains in wanted.values() for rules in chains.values())
        return report

    def last_look(self) -> Round:
        """Whether all that was written is there."""
        report = Round(-1, self._family)
        report.lost = self._missing(*self._read(report))
        return report

    def _missing(self, actual: dict[str, Chains], jumps: Counter[tuple[str, str]]) -> list[str]:
        """What the kernel does not have, or has besides, of our chains; and jumps that are not there once."""
        wrong = [
            f"{table} {chain}: {len(rules)} rules expected, found {actual[table].get(chain)}"
            for table, chains in self._held.items()
            for chain, rules in chains.items()
            if actual[table].get(chain) != rules
        ]
        for table, chains in actual.items():
            wrong += [f"{table} {chain}: too many" for chain in chains.keys() - self._held[table].keys()]
        if self._rounds > 1:
            wrong += [f"jump in {place}: {jumps[place]} times" for place in _JUMPS if jumps[place] != 1]
        return wrong

    def _read(self, report: Round) -> tuple[dict[str, Chains], Counter[tuple[str, str]]]:
        """Our chains in the kernel, and how often each of our jumps is there."""
        found: dict[str, Chains] = {"nat": {}, "filter": {}}
        jumps: Counter[tuple[str, str]] = Counter()
        table = ""
        for line in self._save(report).split("\n"):
            if line.startswith("*"):
                table = line[1:]
                # Its names are read from the kernel while tables are made: the tool may print one twice.
                for place in [place for place in jumps if place[0] == table]:
                    del jumps[place]
            elif line.startswith(":KUBE-"):
                found[table][line[1:].split()[0]] = []
            elif line.startswith("-A KUBE-"):
                chain, rule = line[3:].split(" ", 1)
                found[table][chain].append(rule)
            elif line.startswith("-A ") and "-j KUBE-" in line:
                chain, rule = line[3:].split(" ", 1)
                jumps[table, chain] += rule == f"-j {_JUMPS[table, chain]}"
        return found, jumps

    def _save(self, report: Round) -> str:
        while True:
            done = subprocess.run([f"{self._tool}-save"], capture_output=True, text=True, check=False)
            if not done.returncode:
                return done.stdout
            report.unread.append(done.stderr.strip())

    def _wanted(self) -> dict[str, Chains]:
        mask = 32 if self._family == 4 else 128
        nat: Chains = {"KUBE-SERVICES": []}
        forward: list[str] = []
        for service, endpoints in sorted(self._services.items()):
            nat["KUBE-SERVICES"].append(f"-d {self._address(service, 0)}/{mask} -j KUBE-SVC-{service:016d}")
            nat[f"KUBE-SVC-{service:016d}"] = [f"-j KUBE-SEP-{service:08d}{n:08d}" for n in range(endpoints)]
            for number in range(endpoints):
                source = f"-s {self._address(service, number + 1)}/{mask}"
                comment = f'-m comment --comment "shop/service-{service}:http"'
                nat[f"KUBE-SEP-{service:08d}{number:08d}"] = [f"{source} {comment} -j RETURN"] * 2
            if not endpoints % 3:
                forward.append(f"-d {self._address(service, 0)}/{mask} -j DROP")
        return {"nat": nat, "filter": {"KUBE-FORWARD": forward, "KUBE-FIREWALL": ["-p sctp -j RETURN"]}}

    def _address(self, service: int, number: int) -> str:
        return (
            f"10.9{number}.{service >> 8}.{service & 255}"
            if self._family == 4
            else f"fd09::{number + 1}:{service:x}"
        )

    def _transaction(self, wanted: dict[str, Chains], jumps: Counter[tuple[str, str]]) -> str:
        """Only chains that differ, as kube-proxy does; those that go are emptied and deleted at the end."""
        lines: list[str] = []
        for table, chains in wanted.items():
            held = self._held[table]
            changed = [chain for chain, rules in chains.items() if held.get(chain) != rules]
            gone = held.keys() - chains.keys()
            lines += [f"*{table}", *(f":{chain} - [0:0]" for chain in (*changed, *sorted(gone)))]
            lines += [f"-A {chain} {rule}" for chain in changed for rule in chains[chain]]
            lines += [f"-X {chain}" for chain in sorted(gone)]
            lines += [
                f"-I {chain} -j {target}"
                for (in_table, chain), target in _JUMPS.items()
                if in_table == table and not jumps[in_table, chain]
            ]
            lines.append("COMMIT")
        return "\n".join([*lines, ""])

    def _restore(self, text: str) -> str:
        done = subprocess.run(
            [f"{self._tool}-restore", "--noflush", "-w", "10"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stderr.strip() or "failed" if done.returncode else ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    proxies = [Proxy(family, options.backend, options.seed + family) for family in (4, 6)]
    while not select.select([sys.stdin], [], [], 0)[0]:
        for proxy in proxies:
            print(json.dumps(asdict(proxy.round())), flush=True)
    for proxy in proxies:
        print(json.dumps(asdict(proxy.last_look())), flush=True)


if __name__ == "__main__":
    main()
