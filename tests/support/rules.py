"""Planned rules, written and read as the words of iptables(8)."""

from __future__ import annotations

from felix_py.ruleset.encode import Words, encode, encode_target
from felix_py.ruleset.model import RuleSpec
from felix_py.ruleset.words import parse


def rule_of(*words: str) -> RuleSpec:
    """The rule of these words; the comment says what it is for."""
    return parse(words)[0]


def words(rule: RuleSpec) -> Words:
    """The words of a rule, without its comment."""
    return (*encode(rule.matches), *encode_target(rule.target))
