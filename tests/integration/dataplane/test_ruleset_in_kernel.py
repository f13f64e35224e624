"""What the kernel holds, read back by every decoder, is what the plan meant."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator

import pytest

from felix_py.dataplane.backend import save
from felix_py.dataplane.kernel import Kernel
from felix_py.records import Backend
from felix_py.ruleset import legacy
from felix_py.ruleset.decode_save import decode
from felix_py.ruleset.model import OpaqueMatch, OpaqueTarget, Ruleset
from felix_py.ruleset.seal import closed, is_seal
from felix_py.ruleset.words import parse, split
from policy.model import Family
from tests.support.isolate import new_netns, run
from tests.support.node_program import put, whole

pytestmark = pytest.mark.root

FOREIGN = [
    "-p tcp --dport 22 -j ACCEPT",
    "-p tcp ! --syn -m state --state NEW -j DROP",
    "-p udp -m multiport --sports 53,5353 -j ACCEPT",
    "-p tcp -m multiport ! --ports 1:3,5 -j RETURN",
    "-p tcp --tcp-flags ALL NONE -j DROP",
    "! -p udp -j RETURN",
    "! -s {net} -d {host} -j RETURN",
    "-i eth0 ! -o eth+ -j RETURN",
    "-m mark --mark 0x10 -j MARK --set-mark 0x20/0xff",
    "-m mark ! --mark 0x1/0x1 -j MARK --or-mark 0x4000",
    "-m conntrack ! --ctstate ESTABLISHED,RELATED,NEW -j DROP",
    '-m limit --limit 5/min --limit-burst 9 -j NFLOG --nflog-group 5 --nflog-prefix "it\'s \\"x\\" "',
    '-m comment --comment "it\'s \\\\ a \\"comment\\" " -j RETURN',
    "-p {icmp} -j ACCEPT",
    "-p {icmp} {echo} -j ACCEPT",
    "-p esp -j ACCEPT",
]
"""Rules of others that are wholly understood; {…} differ between the families."""

STRANGE = {
    "-m statistic --mode random --probability 0.5 -j RETURN": OpaqueMatch,
    "-m recent --name x --set -j RETURN": OpaqueMatch,
    "-p tcp -j REJECT --reject-with tcp-reset": OpaqueTarget,
}


def filled(text: str, family: Family) -> str:
    v4 = family is Family.V4
    return text.format(
        net="10.0.0.0/8" if v4 else "fd00::/16",
        host="10.0.0.1" if v4 else "fd00::1",
        icmp="icmp" if v4 else "ipv6-icmp",
        echo="-m icmp --icmp-type 8" if v4 else "-m icmp6 --icmpv6-type 128",
    )


def decoders(family: Family, backend: Backend) -> Iterator[Ruleset]:
    yield decode(family, save(family, backend))
    if backend is Backend.LEGACY:
        yield legacy.read(family)


def test_what_the_plan_writes_reads_back_the_same(kernel: Kernel, backend: Backend, family: Family) -> None:
    update = whole(family)
    assert put(kernel, update).failures == ()
    for found in decoders(family, backend):
        for key, rules in update.chains.items():
            chain = found.chain(key.table, key.name)
            assert chain is not None
            sealed = [rule for rule in chain.rules if is_seal(rule.text)]
            read = chain.rules[: len(chain.rules) - len(sealed)]
            assert [rule.body for rule in read] == [spec.body for spec in closed(rules or ())]
            assert bool(sealed) is bool(rules)
            assert all(rule.hash and not rule.body.opaque for rule in chain.rules)
        for hook in update.hooks:
            chain = found.chain(hook.table, hook.chain)
            assert chain is not None
            assert chain.policy == "ACCEPT"
            assert hook.rule.body in [rule.body for rule in chain.rules]


@pytest.mark.usefixtures("interfaces")
def test_rules_of_others_read_back_the_same(backend: Backend, family: Family) -> None:
    tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
    run(tool, "-N", "MINE")
    run(tool, "-P", "FORWARD", "DROP")
    texts = [filled(text, family) for text in (*FOREIGN, *STRANGE)]
    for text in texts:
        run(tool, "-A", "MINE", *split(text))
    for found in decoders(family, backend):
        chain, forward = found.chain("filter", "MINE"), found.chain("filter", "FORWARD")
        assert chain is not None
        assert forward is not None
        assert (chain.policy, forward.policy) == ("", "DROP")
        for text, rule in zip(texts, chain.rules, strict=True):
            wanted = STRANGE.get(text)
            if wanted is None:
                assert rule.body == parse(tuple(split(text)))[0].body, rule.text
            else:
                assert [type(part) for part in rule.body.opaque] == [wanted]
        assert chain.rules[FOREIGN.index(FOREIGN[12])].comment == 'it\'s \\ a "comment" '


@pytest.mark.usefixtures("interfaces")
@pytest.mark.parametrize("backend", [Backend.LEGACY], indirect=True)
class TestLegacyProcess:
    """python-iptables, tamed."""

    def test_it_makes_no_table(self, backend: Backend, family: Family) -> None:
        assert legacy.read(family).tables == {}
        names = f"/proc/thread-self/net/{'ip' if family is Family.V4 else 'ip6'}_tables_names"
        with open(names) as listed:
            assert listed.read() == ""
        tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
        run(tool, "-t", "raw", "-A", "PREROUTING", "-j", "ACCEPT")
        assert set(legacy.read(family).tables) == {"raw"}
        with open(names) as listed:
            assert listed.read().split() == ["raw"]

    def test_it_waits_for_the_lock(self, backend: Backend, family: Family) -> None:
        tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
        run(tool, "-A", "FORWARD", "-j", "ACCEPT")
        lock = os.open("/run/xtables.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        found: list[Ruleset] = []
        reader = threading.Thread(target=lambda: found.append(legacy.read(family)))
        reader.start()
        reader.join(1.0)
        assert reader.is_alive()
        os.close(lock)
        reader.join(30)
        assert found
        assert found[0].chain("filter", "FORWARD") is not None

    def test_every_network_namespace_is_read_anew(self, backend: Backend, family: Family) -> None:
        tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
        run(tool, "-A", "FORWARD", "-j", "ACCEPT")
        with new_netns():
            assert legacy.read(family).tables == {}
        assert set(legacy.read(family).tables) == {"filter"}
