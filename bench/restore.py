"""Writing iptables chains: felix-py's dataplane beside plain ``iptables-restore --noflush`` of the same text.

1,000 and 5,000 IPv4 rules, five a chain (addresses from an IP set, conntrack, multiport, a comment), on both
backends. One chain, ten chains and all of them change; then everything is read back, beside ``iptables-save``.
What felix-py takes on top of the bare tool is the difference of wanted and actual, quoting, hashing and parsing.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence

from bench.harness import Way, compare, show
from felix_py.dataplane.backend import command
from felix_py.dataplane.iptables_text import render_chain
from felix_py.dataplane.kernel import Kernel
from felix_py.records import Backend, SetSpec, SetType, Update
from felix_py.refs import ChainRef
from felix_py.ruleset.model import DESTINATION, RETURN, InSet, PortIn, ProtocolIs, Rules, RuleSpec, StateIn
from policy.model import Family
from tests.support.isolate import new_netns

FAMILY = Family.V4
RULES_A_CHAIN = 5
_SET = SetSpec("felix4-bench", SetType.IP, FAMILY)


def main(quick: bool) -> None:
    """Both backends, each in a network namespace of its own."""
    for backend in Backend:
        for rules in (100,) if quick else (1000, 5000):
            with new_netns(), Kernel([FAMILY], backend) as kernel:
                _Bench(kernel, backend, rules // RULES_A_CHAIN).run(1 if quick else 11)


class _Bench:
    """One backend and size. Each change has two variants; every run writes the one that is not there."""

    def __init__(self, kernel: Kernel, backend: Backend, chains: int) -> None:
        self._kernel = kernel
        self._backend = backend
        self._keys = [ChainRef(FAMILY, "filter", f"FELIX-BENCH-{number}") for number in range(chains)]
        self._variant = 0
        self._update = Update()
        self._text = ""
        kernel.load()
        kernel.update(Update(sets={_SET.name: _SET}, chains={key: _chain(key, 0) for key in self._keys}))
        self._apply()

    def run(self, times: int) -> None:
        """Print every table of this backend and size."""
        size = f"restore, {self._backend}, {len(self._keys) * RULES_A_CHAIN:,} rules"
        for title, some in (
            ("one chain changed", self._keys[:1]),
            ("ten chains changed", self._keys[:10]),
            ("all chains changed", self._keys),
        ):
            ways = [
                Way("iptables-restore", self._restore, base=True),
                Way("felix-py", self._apply, before=functools.partial(self._change, some)),
            ]
            # The tool writes the text of the last change: as much work, and the dataplane's view stays right.
            self._change(some)
            self._apply()
            show(f"{size}: {title}", compare(ways, times))
        ways = [
            Way("iptables-save", lambda: _run(self._backend, "save"), base=True),
            Way("felix-py load", self._kernel.load, note="with sets and routes"),
        ]
        show(f"{size}: read back", compare(ways, times))

    def _change(self, some: Sequence[ChainRef]) -> None:
        self._variant += 1
        update = Update(chains={key: _chain(key, self._variant) for key in some})
        lines = [f":{key.name} - [0:0]" for key in some]
        lines += [f"-A {key.name} {r.text}" for key in some for r in render_chain(update.chains[key] or ())]
        self._text = "\n".join(["*filter", *lines, "COMMIT", ""])
        self._update = update

    def _apply(self) -> None:
        self._kernel.update(self._update)
        report = self._kernel.apply()
        if report.failures or report.transactions != 1:
            raise RuntimeError(f"expected one transaction and no failure: {report}")

    def _restore(self) -> None:
        _run(self._backend, "restore", "--noflush", "-w", "10", stdin=self._text)


def _chain(key: ChainRef, variant: int) -> Rules:
    return tuple(_rule(key.name, number, variant) for number in range(RULES_A_CHAIN))


def _rule(chain: str, number: int, variant: int) -> RuleSpec:
    ports = ((1000 + number, 1000 + number), (2000 + variant % 1000, 3000 + number))
    match = (ProtocolIs(6), PortIn(DESTINATION, ports), InSet(_SET.name, ("src",)), StateIn(("NEW",)))
    return RuleSpec(match, RETURN, f"bench/{chain.lower()} ingress[{number}]")


def _run(backend: Backend, verb: str, *options: str, stdin: str = "") -> None:
    argv = [command(FAMILY, backend, verb), *options]
    subprocess.run(argv, input=stdin.encode(), stdout=subprocess.PIPE, check=True)
