"""Chains of denials in the plan: there before the rule that goes to them, gone after it."""

from __future__ import annotations

from felix_py.desired.deny_log import DenyLog
from felix_py.desired.marks import Marks
from felix_py.desired.names import Fixed
from felix_py.desired.planner import Planner
from felix_py.desired.static import StaticOptions, static_chains
from felix_py.refs import ChainRef
from felix_py.ruleset.model import Rules
from policy.ir import Allow, Chain, ChainId, ChainKind, Delta, Deny, Match, Origin, Rule
from policy.model import Direction, Family, PolicyKind, PolicyRef, Protocol
from tests.support.rules import words

V4 = Family.V4
POLICY = ChainId(ChainKind.POLICY, Direction.INGRESS, "0123456789abcdef")
NAME = "FELIX-PI-0123456789abcdef"
TCP = Match(Protocol.TCP)
LOG = DenyLog(88, 7)


def origin(index: int) -> Origin:
    return Origin(PolicyRef(PolicyKind.CLUSTER, "", "guard"), Direction.INGRESS, index)


def planner(log: DenyLog | None = LOG) -> Planner:
    made = Planner([V4], StaticOptions(Marks.from_mask(0xFFFF0000), deny_log=log), {})
    made.take()
    made.confirm()
    return made


def tell(made: Planner, *rules: Rule) -> None:
    made.policy(Delta(V4, chains={POLICY: Chain(POLICY, rules)}))


def changed(chains: dict[ChainRef, Rules | None]) -> dict[str, bool]:
    return {key.name: rules is not None for key, rules in chains.items()}


def test_each_deny_rule_has_a_chain_and_its_rule_goes_there_with_its_match() -> None:
    made = planner()
    tell(
        made,
        Rule(Deny(), TCP, origin(0)),
        Rule(Allow(), Match(), origin(1)),
        Rule(Deny(), TCP, origin(12)),
        Rule(Deny(), Match(), origin(13)),
    )
    chains = {key.name: rules for key, rules in made.take().chains.items()}
    names = [f"FELIX-DI-0123456789abcdef-{index}" for index in (0, 12, 13)]
    assert chains.keys() == {NAME, *names}
    rules = chains[NAME]
    assert rules is not None
    assert [words(rule)[-2:] for rule in rules] == [
        ("-g", names[0]),
        ("-g", "FELIX-ALLOW"),
        ("-g", names[1]),
        ("-g", names[2]),
    ]
    assert words(rules[0])[:2] == ("-p", "tcp")
    limit = ("-m", "limit", "--limit", "7/second", "--limit-burst", "35")
    target = ("-j", "NFLOG", "--nflog-group", "88", "--nflog-prefix", "felix:PI-0123456789abcdef:12")
    denied = chains[names[1]]
    assert denied is not None
    assert tuple(map(words, denied)) == ((*limit, *target, "--nflog-size", "128"), ("-j", "DROP"))


def test_what_every_interface_says_of_its_groups_is_not_logged() -> None:
    """MLD reports (RFC 3810) come behind a hop-by-hop header, where no ICMP error is looked for."""
    options = StaticOptions(Marks.from_mask(0xFFFF0000), deny_log=LOG)
    quiet, *logged = static_chains(Family.V6, options)["raw", Fixed.ERROR]
    assert words(quiet) == ("-d", "ff00::/8", "-j", "DROP")
    assert logged == list(static_chains(V4, options)["raw", Fixed.ERROR])


def test_a_rule_beyond_the_numbers_shares_a_chain() -> None:
    made = planner()
    tell(made, Rule(Deny(), TCP, origin(100)), Rule(Deny(), TCP, origin(101)))
    chains = {key.name: rules for key, rules in made.take().chains.items()}
    assert chains.keys() == {NAME, "FELIX-DI-0123456789abcdef"}
    rules = chains["FELIX-DI-0123456789abcdef"]
    assert rules is not None
    assert "felix:PI-0123456789abcdef" in words(rules[0])


def test_a_chain_of_denials_goes_after_the_rule() -> None:
    made = planner()
    tell(made, Rule(Deny(), TCP, origin(0)), Rule(Deny(), TCP, origin(1)))
    made.take()
    made.confirm()
    tell(made, Rule(Deny(), TCP, origin(1)))
    assert changed(made.take().chains) == {NAME: True, "FELIX-DI-0123456789abcdef-1": True}
    assert changed(made.confirm().chains) == {"FELIX-DI-0123456789abcdef-0": False}
    made.policy(Delta(V4, chains={POLICY: None}))
    assert changed(made.take().chains) == {}
    assert changed(made.confirm().chains) == {NAME: False, "FELIX-DI-0123456789abcdef-1": False}


def test_one_that_comes_back_before_it_went_stays() -> None:
    made = planner()
    tell(made, Rule(Deny(), TCP, origin(0)))
    made.take()
    made.confirm()
    made.policy(Delta(V4, chains={POLICY: None}))
    tell(made, Rule(Deny(), TCP, origin(0)))
    assert changed(made.take().chains) == {NAME: True, "FELIX-DI-0123456789abcdef-0": True}
    assert changed(made.confirm().chains) == {}


def test_without_a_log_there_are_none() -> None:
    made = planner(None)
    tell(made, Rule(Deny(), TCP, origin(0)))
    rules = made.take().chains[ChainRef(V4, "filter", NAME)]
    assert rules is not None
    assert tuple(map(words, rules)) == (("-p", "tcp", "-j", "DROP"),)
