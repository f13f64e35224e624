"""Rules for a kernel that lacks a match: without it, and never more open."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations, pairwise

import msgspec
import pytest

from felix_py.desired.features import LOST, Feature, matches
from felix_py.desired.marks import Marks
from felix_py.desired.static import StaticOptions, static_chains, static_hooks
from felix_py.diagnose.agent_says import Configuration
from felix_py.records import Backend
from felix_py.ruleset.encode import Words
from felix_py.ruleset.model import RuleSpec
from policy.model import Family
from tests.support.rules import words

V4, V6 = Family.V4, Family.V6
DROP = ("-j", "DROP")
SETS = {family: f"felix{int(family)}-" for family in Family}


def options(*missing: Feature) -> StaticOptions:
    return StaticOptions(Marks.from_mask(0xFFFF0000), missing=missing)


def chains(family: Family, *missing: Feature) -> dict[str, tuple[Words, ...]]:
    return {
        name: tuple(map(words, rules)) for (_, name), rules in static_chains(family, options(*missing)).items()
    }


def written(family: Family, *missing: Feature) -> list[Words]:
    """Every static rule."""
    hooks = [words(hook.rule) for hook in static_hooks(family, options(*missing))]
    return [*hooks, *(rule for rules in chains(family, *missing).values() for rule in rules)]


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_no_two_tables_have_a_chain_of_one_name(family: Family) -> None:
    """Counters, failures and explanations know a chain by its name."""
    names = [name for _, name in static_chains(family, options())]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("family", list(Family), ids=str)
@pytest.mark.parametrize("number", range(len(Feature) + 1))
def test_no_rule_has_a_match_that_is_missing_and_all_others_stay(family: Family, number: int) -> None:
    for missing in combinations(Feature, number):
        used = {word for rule in written(family, *missing) for before, word in pairwise(rule) if before == "-m"}
        there = {feature.value for feature in Feature if matches(feature, family)}
        assert used & set(Feature) == there - set(missing)


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_what_is_tried_is_what_the_rules_have(family: Family) -> None:
    for feature in Feature:
        tried = words(RuleSpec(matches(feature, family)))
        found = [rule for rule in written(family) if feature.value in rule]
        assert bool(found) is bool(tried)
        for rule in found:
            assert any(rule[at : at + len(tried)] == tried for at in range(len(rule)))


def test_without_bpf_a_pods_icmp_is_echo_and_nothing_else() -> None:
    for family, kinds in ((V4, ("icmp", "--icmp-type", 8, 0)), (V6, ("icmp6", "--icmpv6-type", 128, 129))):
        name, option, request, reply = kinds
        full, without = chains(family), chains(family, Feature.BPF)
        ((at, rule),) = [(at, rule) for at, rule in enumerate(without["FELIX-SOURCE"]) if "FELIX-ERROR" in rule]
        protocol = "icmp" if family is V4 else "ipv6-icmp"
        but = [("-m", name, "!", option, str(kind)) for kind in (request, reply)]
        assert rule == ("-p", protocol, *but[0], *but[1], "-g", "FELIX-ERROR")
        assert without["FELIX-ERROR"][-1] == DROP
        # In the place of the full rule, before any source is let through; nothing else is another.
        assert "FELIX-ERROR" in full["FELIX-SOURCE"][at]
        assert [r for n, r in enumerate(full["FELIX-SOURCE"]) if n != at] == [
            r for n, r in enumerate(without["FELIX-SOURCE"]) if n != at
        ]
        assert {**without, "FELIX-SOURCE": ()} == {**full, "FELIX-SOURCE": ()}


def test_without_hl_neighbour_discovery_keeps_its_link_and_its_source() -> None:
    rules = chains(V6, Feature.HL)["FELIX-NEIGHBOUR"]
    solicitation = ("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", "135")
    bound = ("-m", "set", "--match-set", "felix6-source", "src,src")
    assert rules == (
        ("-s", "::/128", "-d", "ff02::1:ff00:0/104", *solicitation, "-j", "RETURN"),
        ("-d", "fe80::/10", *bound, "-j", "RETURN"),
        ("-d", "ff02::/16", *bound, "-j", "RETURN"),
        ("-s", "fe80::/10", *DROP),
        DROP,
    )


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_without_devgroup_a_pods_source_still_comes_by_no_other_interface(family: Family) -> None:
    full, without = (set(static_hooks(family, options(*missing))) for missing in ((), (Feature.DEVGROUP,)))
    (gone,) = full - without
    assert not without - full
    assert "devgroup" in words(gone.rule)
    local = ("!", "-i", "felix+", "-m", "set", "--match-set", f"{SETS[family]}local", "src", "-j", "FELIX-SOURCE")
    assert local in {words(hook.rule) for hook in without}
    assert chains(family) == chains(family, Feature.DEVGROUP)


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_without_addrtype_the_node_begins_nothing_to_restricted_pods(family: Family) -> None:
    full, without = chains(family), chains(family, Feature.ADDRTYPE)
    to_restricted = ("-m", "set", "--match-set", f"{SETS[family]}ingress", "dst")
    assert without["FELIX-OUTPUT"] == (*full["FELIX-OUTPUT"][:-1], (*to_restricted, "-g", "FELIX-PROXIED"))
    # What answers has passed before.
    assert full["FELIX-OUTPUT"][0] == ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "RETURN")


@pytest.mark.parametrize("family", list(Family), ids=str)
def test_without_rpfilter_every_packets_source_is_looked_up_before_conntrack(family: Family) -> None:
    without = chains(family, Feature.RPFILTER)
    hooks = [hook for hook in static_hooks(family, options(Feature.RPFILTER)) if hook.table == "raw"]
    assert ("-i", "felix+", "-j", "FELIX-SOURCE") in map(words, (hook.rule for hook in hooks))
    assert without["FELIX-SOURCE"] == chains(family)["FELIX-SOURCE"]
    assert "FELIX-SPOOFED" not in without


def test_each_says_what_is_lost() -> None:
    assert LOST.keys() == set(Feature)


def test_status_carries_what_is_missing_to_whoever_compares() -> None:
    given = options(Feature.BPF, Feature.HL)
    configuration = {"backend": "nft", "families": [4, 6], "clusterCidrs": [], "rules": asdict(given)}
    seen = msgspec.json.decode(msgspec.json.encode(configuration))
    assert msgspec.convert(seen, Configuration) == Configuration(Backend.NFT, tuple(Family), (), given)
    # An agent that says nothing of it has written rules that need all of them.
    del seen["rules"]["missing"]
    assert msgspec.convert(seen, Configuration).rules == options()
    # One of a later version may lack what is not known here: what it has written cannot be told.
    seen["rules"]["missing"] = ["bpf", "unheard-of"]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(seen, Configuration)
