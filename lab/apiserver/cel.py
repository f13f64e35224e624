"""Validation rules of custom resources (``x-kubernetes-validations``): the part of CEL that most are made of.

Literals, fields of ``self`` and ``oldSelf``, indexes, ``! && || == != < <= > >= in + -``, ``has``, ``exists``,
``all``, ``size``,
``startsWith``, ``endsWith``, ``contains``, ``matches``, ``string``, ``isIP``, ``isCIDR``, ``cidr``, of which
``masked``, ``prefixLength`` and ``containsIP``. A definition with a rule of anything else is refused: no rule is
silently not applied. Source: the Common Expression Language Specification, and "Validation rules" in the
Kubernetes documentation.
"""

from __future__ import annotations

import ipaddress
import operator
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

Environment = Mapping[str, Any]
_OLD_SELF = re.compile(r"\boldSelf\b")
_Evaluate = Callable[[Environment], Any]

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<name>[A-Za-z_]\w*)"""
    r"""|(?P<sign>&&|\|\||[<>=!]=|[<>!.,()\[\]+-]))"""
)
_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda item, items: item in items,
}
_CONSTANTS = {"true": True, "false": False, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class CelError(ValueError):
    """A rule that cannot be compiled, or not be evaluated for a value."""


def _is_cidr(text: str) -> bool:
    try:
        return "/" in text and bool(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return False


def _is_ip(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


_Cidr = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""A value of Kubernetes' CEL library for CIDRs; its text is the canonical one, host bits included."""


def _cidr(text: str) -> _Cidr:
    if not _is_cidr(text):
        raise TypeError(f"CIDR {text!r} is not valid")
    return ipaddress.ip_interface(text)


def _masked(value: _Cidr) -> _Cidr:
    return ipaddress.ip_interface(value.network)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "size": len,
    "isCIDR": _is_cidr,
    "isIP": _is_ip,
    "cidr": _cidr,
    "string": str,
}
_METHODS: dict[str, Callable[..., Any]] = {
    "size": len,
    "masked": _masked,
    "prefixLength": lambda value: value.network.prefixlen,
    "containsIP": lambda value, address: ipaddress.ip_address(address) in value.network,
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": operator.contains,
    "matches": lambda text, pattern: re.search(pattern, text) is not None,
}


def is_transition(rule: str) -> bool:
    """Whether the rule compares with ``oldSelf``: it is asked where a value replaces another."""
    return _OLD_SELF.search(rule) is not None


@lru_cache(maxsize=512)
def compiled(rule: str) -> Callable[..., bool]:
    """The rule as a function of ``self`` and ``oldSelf``; that raises CelError where a value lacks what the rule
    asks for.

    Raises:
        CelError: it is no CEL, or uses more of it than is supported here.
    """
    parser = _Parser(rule)
    try:
        evaluate = parser.expression()
    except RecursionError:
        raise CelError("it is nested too deeply") from None
    parser.end()

    def holds(value: Any, old: Any = None) -> bool:
        try:
            return bool(evaluate({"self": value, "oldSelf": old}))
        except (TypeError, KeyError, IndexError) as error:
            raise CelError(str(error)) from error

    return holds


class _Parser:
    """Recursive descent over the tokens of one rule; each method compiles what it has read."""

    def __init__(self, rule: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        self._next = 0
        position, rule = 0, rule.strip()
        while position < len(rule):
            found = _TOKEN.match(rule, position)
            if found is None or found.lastgroup is None:
                raise CelError(f"Syntax error: token recognition error at: {rule[position:].strip()[:10]!r}")
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            position = found.end()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "end of the rule")

    def _take(self, *words: str) -> str | None:
        """The next token, if it is one of the words."""
        kind, text = self._peek()
        if kind in ("sign", "name") and text in words:
            self._next += 1
            return text
        return None

    def _need(self, word: str) -> None:
        if self._take(word) is None:
            raise CelError(f"Syntax error: {word!r} expected, not {self._peek()[1]!r}")

    def _name(self) -> str:
        kind, text = self._peek()
        if kind != "name":
            raise CelError(f"Syntax error: a name expected, not {text!r}")
        self._next += 1
        return text

    def end(self) -> None:
        """Nothing must be left."""
        if self._peek()[0] != "end":
            raise CelError(f"Syntax error: unexpected {self._peek()[1]!r}")

    def expression(self) -> _Evaluate:
        """Alternatives; as in CEL, one that holds outweighs one that cannot be evaluated."""
        first = self._conjunction()
        while self._take("||"):
            first = _either(first, self._conjunction())
        return first

    def _conjunction(self) -> _Evaluate:
        first = self._relation()
        while self._take("&&"):
            first = _both(first, self._relation())
        return first

    def _relation(self) -> _Evaluate:
        left = self._sum()
        word = self._take(*_RELATIONS)
        return left if word is None else _binary(_RELATIONS[word], left, self._sum())

    def _sum(self) -> _Evaluate:
        left = self._unary()
        while word := self._take("+", "-"):
            left = _binary(operator.add if word == "+" else operator.sub, left, self._unary())
        return left

    def _unary(self) -> _Evaluate:
        if self._take("!"):
            inner = self._unary()
            return lambda env: not inner(env)
        if self._take("-"):
            number = self._unary()
            return lambda env: -number(env)
        return self._member()

    def _member(self) -> _Evaluate:
        value = self._primary()
        while True:
            if self._take("."):
                name = self._name()
                value = self._call(value, name) if self._take("(") else _field(value, name)
            elif self._take("["):
                value = _binary(operator.getitem, value, self.expression())
                self._need("]")
            else:
                return value

    def _call(self, value: _Evaluate, name: str) -> _Evaluate:
        """A method or a macro on a value, behind its opening bracket."""
        if name in ("exists", "all"):
            variable = self._name()
            self._need(",")
            test = self.expression()
            self._need(")")
            choose = any if name == "exists" else all
            return lambda env: choose(test({**env, variable: item}) for item in value(env))
        if name not in _METHODS:
            raise CelError(f"undeclared reference to '{name}'")
        arguments = self._arguments()
        return lambda env: _METHODS[name](value(env), *(argument(env) for argument in arguments))

    def _arguments(self) -> list[_Evaluate]:
        if self._take(")"):
            return []
        found = [self.expression()]
        while self._take(","):
            found.append(self.expression())
        self._need(")")
        return found

    def _primary(self) -> _Evaluate:
        kind, text = self._peek()
        self._next += 1
        if kind == "number":
            number = float(text) if "." in text else int(text)
            return lambda _env: number
        if kind == "text":
            plain = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text[1:-1])
            return lambda _env: plain
        if kind == "name":
            return self._named(text)
        if text == "(":
            inner = self.expression()
            self._need(")")
            return inner
        if text == "[":
            items = [] if self._take("]") else [self.expression()]
            while items and not self._take("]"):
                self._need(",")
                items.append(self.expression())
            return lambda env: [item(env) for item in items]
        raise CelError(f"Syntax error: unexpected {text!r}")

    def _named(self, name: str) -> _Evaluate:
        if name in _CONSTANTS:
            return lambda _env: _CONSTANTS[name]
        if not self._take("("):
            return lambda env: env[name]
        if name == "has":
            return self._has()
        if name not in _FUNCTIONS:
            raise CelError(f"undeclared reference to '{name}'")
        arguments = self._arguments()
        return lambda env: _FUNCTIONS[name](*(argument(env) for argument in arguments))

    def _has(self) -> _Evaluate:
        """``has(a.b)``: whether a has the field b."""
        value = self._primary()
        self._need(".")
        name = self._name()
        while self._take("."):
            value, name = _field(value, name), self._name()
        self._need(")")
        return lambda env: name in value(env)


def _field(value: _Evaluate, name: str) -> _Evaluate:
    def read(env: Environment) -> Any:
        found = value(env)
        if not isinstance(found, dict) or name not in found:
            raise KeyError(f"no such key: {name}")
        return found[name]

    return read


def _binary(apply: Callable[[Any, Any], Any], left: _Evaluate, right: _Evaluate) -> _Evaluate:
    return lambda env: apply(left(env), right(env))


def _both(left: _Evaluate, right: _Evaluate) -> _Evaluate:
    return lambda env: bool(left(env)) and bool(right(env))


def _either(left: _Evaluate, right: _Evaluate) -> _Evaluate:
    def evaluate(env: Environment) -> bool:
        try:
            if left(env):
                return True
        except (TypeError, KeyError, IndexError):
            if right(env):
                return True
            raise
        return bool(right(env))

    return evaluate
