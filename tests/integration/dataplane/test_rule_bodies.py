"""Somebody alters what a rule of ours does and leaves its comment as it is."""

from __future__ import annotations

from typing import Any

import pytest

from felix_py.dataplane import backend as backend_tools
from felix_py.dataplane import iptables
from felix_py.dataplane.kernel import Kernel
from felix_py.records import Backend, Hook, Update
from felix_py.refs import ChainRef
from felix_py.ruleset.words import split
from policy.model import Family
from tests.support import kernel_state
from tests.support.isolate import run
from tests.support.node_program import check_quiet, each_with_another, put, whole
from tests.support.rules import rule_of

pytestmark = pytest.mark.root

ALTERED = {
    "verdict": ("filter", "FELIX-CE-1", 4, "-j DROP", "-j ACCEPT"),
    "set": ("filter", "FELIX-CE-1", 1, "-nets src", "-empty src"),
    "side": ("filter", "FELIX-CE-1", 1, "-nets src", "-nets dst"),
    "ports": ("filter", "FELIX-CE-1", 1, "80,443,8000:8080", "80,443,8000:9090"),
    "protocol": ("filter", "FELIX-CE-1", 1, "-p tcp", "-p udp"),
    "goto": ("filter", "FELIX-CE-1", 2, "-g FELIX-ALLOW", "-j FELIX-ALLOW"),
    "mark": ("filter", "FELIX-FORWARD", 2, "0x20000/0xfe0000", "0x20000/0x20000"),
    "target chain": ("filter", "FELIX-FORWARD", 2, "-g FELIX-CE-1", "-g FELIX-ALLOW"),
    "state": ("filter", "FELIX-FORWARD", 1, "INVALID", "INVALID,NEW"),
    "mark set": ("filter", "FELIX-ALLOW", 1, "0x10000/0x10000", "0x10000/0xffffffff"),
    "negated": ("nat", "FELIX-POSTROUTING", 1, "-m set ! --match-set", "-m set --match-set"),
    "interface": ("mangle", "FELIX-CLASSIFY", 1, "! -i felix+", "! -i felix1"),
    "map": ("mangle", "FELIX-CLASSIFY", 4, "src --map-mark", "dst --map-mark"),
    "foreign match": (
        "filter",
        "FELIX-CE-1",
        4,
        "-j DROP",
        "-m statistic --mode nth --every 2 --packet 0 -j DROP",
    ),
    "replaced by a foreign one": (
        "filter",
        "FELIX-CE-1",
        2,
        "-g FELIX-ALLOW",
        "-m comment --comment x -j ACCEPT",
    ),
    "unknown words": ("filter", "FELIX-CE-1", 2, "dst,dst", "dst,dst --packets-gt 0"),
    "hook": ("raw", "PREROUTING", 1, "-i felix+", "-i felix9"),
    "last hook": ("filter", "FORWARD", 2, "-i felix+", "-i nobody"),
}


def alter(family: Family, backend: Backend, what: tuple[str, str, int, str, str]) -> None:
    table, chain, number, old, new = what
    text = kernel_state.rules(family, backend, table, chain)[number - 1]
    assert old in text
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
    run(tool, "-t", table, "-R", chain, str(number), *split(text.replace(old, new)))


@each_with_another
@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_rule_is_found_and_put_right(
    kernel: Kernel, backend: Backend, family: Family, kind: str
) -> None:
    put(kernel, whole(family))
    wanted = kernel_state.everything(backend)
    for _ in range(2):  # also the second time: the repair must not take the alteration for what is right
        alter(family, backend, ALTERED[kind])
        assert kernel_state.everything(backend) != wanted
        assert len(kernel.differences()) == 1
        kernel.load()
        report = kernel.apply(sweep=True)
        assert (report.failures, report.writes) == ((), 1)
        assert kernel_state.everything(backend) == wanted
        kernel.load()
        check_quiet(kernel)


def test_a_new_process_finds_it_as_well(kernel: Kernel, backend: Backend, family: Family) -> None:
    put(kernel, whole(family))
    wanted = kernel_state.everything(backend)
    with Kernel(list(Family), backend) as later:
        later.load()
        assert put(later, whole(family)).writes == 0
    alter(family, backend, ALTERED["verdict"])
    with Kernel(list(Family), backend) as later:
        later.load()
        assert put(later, whole(family)).writes == 1
    assert kernel_state.everything(backend) == wanted


def test_the_text_of_a_hook_s_comment_is_no_difference(kernel: Kernel, backend: Backend, family: Family) -> None:
    put(kernel, whole(family))
    alter(family, backend, ("filter", "FORWARD", 1, "way in", "someone else's"))
    kernel.load()
    check_quiet(kernel)


def test_the_text_of_a_seal_is_part_of_it(kernel: Kernel, backend: Backend, family: Family) -> None:
    """A chain whose rules stay the same may become another policy's."""
    put(kernel, whole(family))
    wanted = kernel_state.everything(backend)
    alter(family, backend, ("filter", "FELIX-CE-1", 5, "default/web", "someone/else"))
    kernel.load()
    assert kernel.apply().writes == 1
    assert kernel_state.everything(backend) == wanted


@pytest.mark.parametrize("printed", ["--ctstate INVALID,UNTRACKED ", "--ctflavour INVALID "])
def test_what_is_printed_in_another_way_is_not_written_for_ever(
    kernel: Kernel, backend: Backend, family: Family, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools of another version may print a rule so that we take it for another one, or do not understand it."""

    def save(*args: Any) -> str:
        return backend_tools.save(*args).replace("--ctstate INVALID ", printed)

    monkeypatch.setattr(iptables, "save", save)
    put(kernel, whole(family))
    kernel.load()
    assert kernel.apply().writes == 1  # once, to be sure
    for _ in range(2):
        kernel.load()
        check_quiet(kernel)
    alter(family, backend, ALTERED["state"])
    kernel.load()
    assert kernel.apply().writes == 1


def test_what_cannot_be_understood_is_written_once_more(kernel: Kernel, backend: Backend, family: Family) -> None:
    """In a chain of ours there is no comment to go by; a hook has one, and counts by it."""
    odd = rule_of("-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "DROP")
    hook = Hook(family, "filter", "OUTPUT", odd, first=True)
    key = ChainRef(family, "filter", "FELIX-ODD")
    assert put(kernel, Update(chains={key: (odd,)}, hooks={hook: True})).writes == 2
    kernel.load()
    assert kernel.apply().writes == 1
    for _ in range(2):
        kernel.load()
        check_quiet(kernel)
