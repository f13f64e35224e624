"""What the kernel holds is what was meant, whatever characters a rule carries."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from felix_py.dataplane.kernel import Kernel
from felix_py.desired.render import FROM_POD
from felix_py.records import Backend, Hook, Update
from felix_py.refs import ChainRef
from felix_py.ruleset.model import DROP, RETURN, Jump, Log, Rules, RuleSpec
from felix_py.ruleset.words import split
from policy.model import Family
from tests.support import kernel_state
from tests.support.node_program import check_quiet, put, whole

pytestmark = pytest.mark.root

CHAIN = "FELIX-TEXT"

HOSTILE = [
    "quotes \" and ' and `",
    "ends in a backslash \\",
    '\\" -j ACCEPT',
    '" -j ACCEPT',
    "$(reboot) ; | & > < * ? ~ ! # %s %n",
    "line\nCOMMIT\n*filter\n-P INPUT DROP",
    "tab\tand\rreturn\x0band\x1bescape",
    "nul\0byte",
    "ünïcödé 漢字 🚀",
    "line and paragraph separators \u2028 \u2029 \x85 end",
    "not unicode \udcff",
    "é" * 300,
    " leading and  double  spaces ",
    "felix:0123456789abcdef",
    "--comment felix:0123456789abcdef",
    '-m comment --comment "felix:0123456789abcdef"',
    "",
]


def shown(text: str, room: int) -> str:
    """A hostile text as a comment shows it that has room for so many bytes of it."""
    clean = "".join("?" if ord(c) < 32 or c == "\x7f" or 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
    return clean.encode()[:room].decode(errors="ignore")


@pytest.mark.parametrize("text", HOSTILE)
def test_comments_arrive_as_they_are_and_nothing_else_does(kernel: Kernel, backend: Backend, text: str) -> None:
    family = Family.V4
    rules = (RuleSpec((), DROP, text), RuleSpec((), RETURN))
    hook = Hook(family, "raw", "PREROUTING", RuleSpec((FROM_POD,), Jump(CHAIN), text), first=True)
    chains: dict[ChainRef, Rules | None] = {ChainRef(family, table, CHAIN): rules for table in ("filter", "raw")}
    report = put(kernel, Update(chains=chains, hooks={hook: True}))
    assert report.failures == ()
    first, second, seal = kernel_state.rules(family, backend, "filter", CHAIN)
    assert (first, second) == ("-j DROP", "-j RETURN")
    words = list(split(seal))
    assert words[:-1] == ["-m", "comment", "--comment"]
    assert words[-1].split(" ", 2)[2:] == [shown(text, 103).strip()] * bool(text)
    (way_in,) = kernel_state.rules(family, backend, "raw", "PREROUTING")
    words = list(split(way_in))
    assert words[2:5] == ["-m", "comment", "--comment"]
    assert words[6:] == ["-j", CHAIN]
    assert words[5].partition(" ")[2] == shown(text, 255 - len("felix:0123456789abcdef "))
    assert ":INPUT ACCEPT" in kernel_state.saved(family, backend)
    kernel.load()
    check_quiet(kernel)


@pytest.mark.parametrize("prefix", ['a "b" c: ', "back\\slash \\", "'single'", "#!%$;", "ü 漢"])
def test_other_words_are_exact(kernel: Kernel, backend: Backend, prefix: str) -> None:
    key = ChainRef(Family.V4, "filter", CHAIN)
    assert put(kernel, Update(chains={key: (RuleSpec((), Log(0, prefix)),)})).failures == ()
    rule = kernel_state.rules(Family.V4, backend, "filter", CHAIN)[0]
    assert list(split(rule))[-1] == prefix
    kernel.load()
    check_quiet(kernel)


def decoded(table: str, chain: str) -> list[dict[str, object]]:
    """A chain as python-iptables decodes it from the kernel's binary, in a process of its own."""
    script = f"import iptc, json; print(json.dumps(iptc.easy.dump_chain({table!r}, {chain!r})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rules = json.loads(done.stdout)
    assert isinstance(rules, list)
    return rules


def test_an_independent_decoder_agrees(interfaces: None) -> None:
    """python-iptables reads the legacy tables itself, without the tools that wrote them."""
    with Kernel([Family.V4], Backend.LEGACY) as kernel:
        kernel.load()
        assert put(kernel, whole(Family.V4)).failures == ()
    web, ports, sctp, drop, seal = decoded("filter", "FELIX-CE-1")
    assert web["protocol"] == "tcp"
    assert web["multiport"] == {"dports": "80,443,8000:8080"}
    assert web["set"] == {"match-set": ["felix4-nets", "src"]}
    comment = str(seal["comment"]["comment"])  # type: ignore[index]
    # It asks the match's own save function, and forgets to take the backslash before an apostrophe away again.
    assert comment.replace("\\'", "'").endswith('default/web "it\'s" \\ rule 1')
    assert web["target"] == "FELIX-ALLOW"
    assert ports["set"] == {"match-set": ["felix4-ports", "dst,dst"]}
    assert ports["target"] == {"goto": "FELIX-ALLOW"}
    assert sctp["protocol"] == "sctp"
    assert drop["target"] == "DROP"
    _, dispatch, *_ = decoded("filter", "FELIX-FORWARD")
    assert dispatch["mark"] == {"mark": "0x20000/0xfe0000"}
