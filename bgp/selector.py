"""Calico's label selectors: ``nodeSelector`` and ``peerSelector`` of a BGPPeer.

The grammar is that of Calico's libcalico-go/lib/selector, white space being blanks and tabs::

    or         = and *( "||" and )
    and        = term *( "&&" term )
    term       = *"!" ( "(" or ")" / "all()" / "global()" / "has(" key ")" / key comparison )
    comparison = ( "==" / "!=" / "contains" / "starts with" / "ends with" ) literal
               / ( "in" / "not in" ) "{" [ literal *( "," literal ) [ "," ] ] "}"
    literal    = text between two ' or two "; there is no escape

An empty selector is ``all()``. ``!=`` and ``not in`` match objects that do not have the label, the others do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

_DEEPEST = 50
"""Parentheses inside each other."""

_TOKEN = re.compile(
    r"""(?P<string>'[^']*'|"[^"]*")
      | (?P<call>(?:all|global)\([ \t]*\)|has\([ \t]*(?P<argument>[A-Za-z0-9_./-]+)[ \t]*\))
      | (?P<sign>\|\||&&|==|!=|[!(){},])
      | (?P<word>[A-Za-z0-9_./-]+)""",
    re.VERBOSE,
)
_OPERATOR = re.compile(r"==|!=|contains|starts[ \t]*with|ends[ \t]*with|not[ \t]*in|in")
_BLANK = re.compile(r"[ \t]*")

_COMPARISONS: Mapping[str, Callable[[str | None, tuple[str, ...]], bool]] = {
    "==": lambda value, given: value in given,
    "!=": lambda value, given: value not in given,
    "in": lambda value, given: value in given,
    "not in": lambda value, given: value not in given,
    "contains": lambda value, given: value is not None and given[0] in value,
    "starts with": lambda value, given: value is not None and value.startswith(given),
    "ends with": lambda value, given: value is not None and value.endswith(given),
}


@dataclass(frozen=True, slots=True)
class _All:
    def matches(self, labels: Mapping[str, str]) -> bool:
        return True

    def __str__(self) -> str:
        return "all()"


@dataclass(frozen=True, slots=True)
class _Has:
    key: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        return self.key in labels

    def __str__(self) -> str:
        return f"has({self.key})"


@dataclass(frozen=True, slots=True)
class _Compare:
    key: str
    operator: str
    values: tuple[str, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return _COMPARISONS[self.operator](labels.get(self.key), self.values)

    def __str__(self) -> str:
        quoted = ", ".join(f'"{value}"' if "'" in value else f"'{value}'" for value in self.values)
        return f"{self.key} {self.operator} " + (f"{{{quoted}}}" if self.operator.endswith("in") else quoted)


@dataclass(frozen=True, slots=True)
class _Not:
    inner: _Node

    def matches(self, labels: Mapping[str, str]) -> bool:
        return not self.inner.matches(labels)

    def __str__(self) -> str:
        return f"!({self.inner})" if isinstance(self.inner, _Compare) else f"!{self.inner}"


@dataclass(frozen=True, slots=True)
class _Both:
    """``every``: all parts must match, else one."""

    every: bool
    parts: tuple[_Node, ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        return (all if self.every else any)(part.matches(labels) for part in self.parts)

    def __str__(self) -> str:
        return f"({(' && ' if self.every else ' || ').join(map(str, self.parts))})"


_Node = _All | _Has | _Compare | _Not | _Both


@dataclass(frozen=True, slots=True)
class Selector:
    """A selector that was parsed. Its text means the same as the one that it was made of."""

    _root: _Node

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return self._root.matches(labels)

    def __str__(self) -> str:
        return str(self._root)


def parse(text: str) -> Selector:
    """Raises ValueError with the position, counted from 1, of what cannot be understood."""
    return Selector(_Parser(text).parse())


class _Parser:
    """Recursive descent over one text. ``_kind`` and ``_token`` are what comes next; both empty at the end."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._end = 0
        self._kind = self._token = self._argument = ""
        self._depth = 0
        self._step()

    def parse(self) -> _Node:
        if not self._kind:
            return _All()
        found = self._either()
        if self._kind:
            raise self._error("expected && or || or the end")
        return found

    def _either(self) -> _Node:
        return _joined(False, [self._every(), *self._after("||", self._every)])

    def _every(self) -> _Node:
        return _joined(True, [self._term(), *self._after("&&", self._term)])

    def _after(self, sign: str, read: Callable[[], _Node]) -> Iterator[_Node]:
        while self._take(sign):
            yield read()

    def _term(self) -> _Node:
        negated = False
        while self._take("!"):
            negated = not negated
        found = self._plain()
        return _Not(found) if negated else found

    def _plain(self) -> _Node:
        if self._take("("):
            return self._nested()
        kind, token, argument = self._kind, self._token, self._argument
        if kind == "call":
            self._step()
            return _Has(argument) if argument else _All()
        if kind != "word":
            raise self._error("expected a label, all(), global(), has(label) or (")
        return self._comparison(token)

    def _nested(self) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error("parentheses are nested too deeply")
        found = self._either()
        self._depth -= 1
        self._expect(")")
        return found

    def _comparison(self, key: str) -> _Node:
        start = _end(_BLANK, self._text, self._end)
        match = _OPERATOR.match(self._text, start)
        if not match:
            self._at = start
            raise self._error(f"expected an operator after the label {key}")
        self._end = match.end()
        operator = next(name for name in _COMPARISONS if name.replace(" ", "") == re.sub("[ \t]", "", match[0]))
        self._step()
        return _Compare(key, operator, self._set() if operator.endswith("in") else (self._literal(),))

    def _set(self) -> tuple[str, ...]:
        self._expect("{")
        values = []
        while self._kind == "string":
            values.append(self._literal())
            if not self._take(","):
                break
        self._expect("}")
        return tuple(sorted(set(values)))

    def _literal(self) -> str:
        if self._kind != "string":
            raise self._error("expected a text in quotes")
        text = self._token[1:-1]
        self._step()
        return text

    def _take(self, sign: str) -> bool:
        found = self._kind == "sign" and self._token == sign
        if found:
            self._step()
        return found

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._error(f"expected {sign}")

    def _step(self) -> None:
        """Go on to the next token."""
        self._at = _end(_BLANK, self._text, self._end)
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            if self._at < len(self._text):
                raise self._error("unexpected character")
            self._kind = self._token = self._argument = ""
            return
        self._end = match.end()
        self._kind, self._token = next(
            (kind, match[kind]) for kind in ("string", "call", "sign", "word") if match[kind]
        )
        self._argument = match["argument"] or ""

    def _error(self, reason: str) -> ValueError:
        near = self._text[self._at : self._at + 20]
        return ValueError(
            f"{reason} at character {self._at + 1}" + (f": {near!r}" if near else ", where it ends")
        )


def _joined(every: bool, parts: list[_Node]) -> _Node:
    return parts[0] if len(parts) == 1 else _Both(every, tuple(parts))


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    assert match is not None
    return match.end()
