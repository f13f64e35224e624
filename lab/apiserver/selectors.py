"""``labelSelector`` and ``fieldSelector`` query parameters: the string grammars of apimachinery."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.apiserver.errors import bad_request
from lab.apiserver.kinds import Obj

Matcher = Callable[[Obj], bool]

_TOKEN = re.compile(r"\s*(?:(?P<op>==|!=|=|!|,|\(|\)|<|>)|(?P<word>[^\s=!,()<>]+))")


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One comma-separated part. ``operator``: in, notin, exists, !, gt or lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As apimachinery's Requirement.Matches: notin also holds where the label is absent."""
        present = self.key in labels
        match self.operator:
            case "exists":
                return present
            case "!":
                return not present
            case "in":
                return present and labels[self.key] in self.values
            case "notin":
                return not present or labels[self.key] not in self.values
        try:
            have, bound = int(labels[self.key]), int(next(iter(self.values)))
        except (KeyError, ValueError):
            return False
        return have > bound if self.operator == "gt" else have < bound


def parse_label_selector(text: str) -> tuple[LabelRequirement, ...]:
    """Parse ``a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1``; 400 for anything else."""
    return _LabelParser(text).parse()


class _LabelParser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._scan(text)

    def _scan(self, text: str) -> list[str]:
        tokens, position, end = [], 0, len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            if found is None:
                raise self._error()
            tokens.append(found["op"] or found["word"])
            position = found.end()
        return tokens

    def _error(self) -> Exception:
        return bad_request(f'unable to parse requirement: invalid label selector "{self._text}"')

    def _next(self) -> str:
        if not self._tokens:
            raise self._error()
        return self._tokens.pop(0)

    def _word(self) -> str:
        word = self._next()
        if word in {"=", "==", "!=", "!", ",", "(", ")", "<", ">"}:
            raise self._error()
        return word

    def parse(self) -> tuple[LabelRequirement, ...]:
        requirements = []
        while self._tokens:
            requirements.append(self._requirement())
            if self._tokens and (self._next() != "," or not self._tokens):
                raise self._error()
        return tuple(requirements)

    def _requirement(self) -> LabelRequirement:
        if self._tokens[0] == "!":
            self._next()
            return LabelRequirement(self._word(), "!")
        key = self._word()
        operator = self._tokens[0] if self._tokens else ","
        if operator == ",":
            return LabelRequirement(key, "exists")
        self._next()
        match operator:
            case "=" | "==":
                return LabelRequirement(key, "in", frozenset({self._value()}))
            case "!=":
                return LabelRequirement(key, "notin", frozenset({self._value()}))
            case "in" | "notin":
                return LabelRequirement(key, operator, self._values())
            case "<" | ">":
                return LabelRequirement(key, "lt" if operator == "<" else "gt", frozenset({self._word()}))
        raise self._error()

    def _value(self) -> str:
        return "" if not self._tokens or self._tokens[0] == "," else self._word()

    def _values(self) -> frozenset[str]:
        if self._next() != "(":
            raise self._error()
        values, expect_word = [], True
        while (token := self._next()) != ")":
            if expect_word == (token == ","):
                raise self._error()
            if token != ",":
                values.append(token)
            expect_word = token == ","
        if expect_word and values:
            values.append("")
        return frozenset(values)


def label_matcher(text: str) -> Matcher | None:
    """What ``labelSelector`` selects; None: everything."""
    requirements = parse_label_selector(text)
    if not requirements:
        return None

    def matches(obj: Obj) -> bool:
        labels = obj["metadata"].get("labels") or {}
        return all(requirement.matches(labels) for requirement in requirements)

    return matches


def parse_field_selector(text: str) -> tuple[tuple[str, bool, str], ...]:
    """Parse ``a=b,c!=d`` into (field, equal, value); 400 for anything else. A backslash escapes in values."""
    terms = []
    for part in re.split(r"(?<!\\),", text):
        if not part.strip():
            continue
        found = re.match(r"\s*(?P<key>[^=!\\]+?)\s*(?P<op>==|!=|=)(?P<value>.*)", part, re.DOTALL)
        if found is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        value = re.sub(r"\\([\\,=])", r"\1", found["value"])
        terms.append((found["key"], found["op"] != "!=", value))
    return tuple(terms)


def field_matcher(text: str, labels: Mapping[str, Callable[[Obj], str]]) -> Matcher | None:
    """What ``fieldSelector`` selects; ``labels`` maps the fields this kind supports to their readers."""
    terms = parse_field_selector(text)
    for name, _, _ in terms:
        if name not in labels:
            raise bad_request(f"field label not supported: {name}")
    if not terms:
        return None
    readers = [(labels[name], equal, value) for name, equal, value in terms]

    def matches(obj: Obj) -> bool:
        return all((read(obj) == value) is equal for read, equal, value in readers)

    return matches


def both(first: Matcher | None, second: Matcher | None) -> Matcher | None:
    """Both must match; None is "everything"."""
    if first is None or second is None:
        return first or second
    return lambda obj: first(obj) and second(obj)
