"""Words of one iptables rule -> its meaning (:mod:`felix_py.ruleset.encode` is the reverse). No I/O.

The words are those of iptables(8) and iptables-extensions(8), from iptables-save or from python-iptables. Both
give the same :class:`~felix_py.ruleset.model.Body`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from msgspec import Struct, field

from felix_py.layout import COMMENT_PREFIX
from felix_py.ruleset import model as m
from felix_py.ruleset.extensions import MATCHES, TARGETS, Option, Unknown

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)', re.DOTALL)
_PLAIN = re.compile(r"[^\s\"'\\]+")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OUR_COMMENT = re.compile(re.escape(COMMENT_PREFIX) + r"([0-9a-f]{16})(?: .*)?", re.DOTALL)

_HEAD = {
    **dict.fromkeys(("-s", "--source", "--src"), "-s"),
    **dict.fromkeys(("-d", "--destination", "--dst"), "-d"),
    **dict.fromkeys(("-i", "--in-interface"), "-i"),
    **dict.fromkeys(("-o", "--out-interface"), "-o"),
    **dict.fromkeys(("-p", "--protocol"), "-p"),
}
_BLOCKS = {"-m": "-m", "--match": "-m", "-j": "-j", "--jump": "-j", "-g": "-g", "--goto": "-g"}

_ARITY = {
    **dict.fromkeys(("--comment", "--nflog-prefix", "--log-prefix"), 1),
    **dict.fromkeys(("--match-set", "--map-set", "--tcp-flags"), 2),
}
"""Number of values of options whose values may look like options. Others take all words up to the next option."""

_PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipip": 4,
    "ipencap": 4,
    "tcp": 6,
    "udp": 17,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "ospf": 89,
    "vrrp": 112,
    "sctp": 132,
    "udplite": 136,
    "dccp": 33,
}
_PROTOCOL_MODULES = {6: "tcp", 17: "udp", 132: "sctp", 33: "dccp", 1: "icmp", 58: "icmp6", 136: "udplite"}


class BadWords(ValueError):
    """Not the words of a rule; the message says why."""


def target_of(line: str) -> str:
    """Returns a rule's target, or the chain that it leads to; empty: none."""
    words = split(line)
    for word in words:
        if _BLOCKS.get(word) in ("-j", "-g"):
            return next(words, "")
        if word == "--comment":
            next(words, "")
    return ""


def split(line: str) -> Iterator[str]:
    """Yields the words of an iptables-save line, unquoted."""
    for match in _WORD.finditer(line):
        quoted, plain = match.groups()
        yield plain if quoted is None else _ESCAPED.sub(r"\1", quoted)


def join(words: Iterable[str]) -> str:
    """Join words as iptables-save prints them: the reverse of :func:`split`."""
    return " ".join(
        word if _PLAIN.fullmatch(word) else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for word in words
    )


def brief(text: str) -> str:
    """A rule's text for people; our own comment comes last, without its hash."""
    words = list(split(text))
    for at in range(len(words) - 3):
        if words[at : at + 3] == ["-m", "comment", "--comment"] and our_hash(words[at + 3]):
            about, rest = words[at + 3].partition(" ")[2], join(words[:at] + words[at + 4 :])
            return f'{rest} "{about}"' if about else rest
    return text


def our_hash(comment: str) -> str:
    """Returns the hash in a comment of ours; empty: not ours."""
    ours = _OUR_COMMENT.fullmatch(comment)
    return ours[1] if ours else ""


def parse_text(text: str) -> m.Rule:
    """Decode a rule as a tool prints it after ``-A CHAIN``. Unknown parts become opaque."""
    return to_rule(tuple(split(text)), text)


def to_rule(words: Sequence[str], text: str) -> m.Rule:
    """Decode a rule from its words; ``text`` is for people. Unknown parts become opaque."""
    try:
        spec, comments = parse(words)
    except BadWords:
        return m.Rule(m.Body((m.OpaqueMatch("", tuple(words)),), m.OpaqueTarget("")), text)
    ours = next(filter(None, map(our_hash, comments)), "")
    return m.Rule(spec.body, text, " ".join(comments), ours)


def parse(words: Sequence[str]) -> tuple[m.RuleSpec, tuple[str, ...]]:
    """Returns a rule, its matches in the order of the words, and its comments.

    Raises:
        BadWords: the words are no rule. An unknown extension is no error, but opaque.
    """
    matches: list[m.Match] = []
    comments: list[str] = []
    target: m.Target | None = None
    for part in _Reader(words).read():
        if not isinstance(part, _Block):
            matches.append(part)
        elif part.kind != "-m":
            if target is not None:
                raise BadWords("two targets")
            target = _target(part)
        elif part.name == "comment":
            comments += [value for option in part.options for value in option.values]
        else:
            matches += _matches(part)
    return m.RuleSpec(tuple(matches), target, " ".join(comments)), tuple(comments)


class _Block(Struct):
    """``-m NAME``, ``-j NAME`` or ``-g NAME`` with its options."""

    kind: str
    name: str
    options: list[Option] = field(default_factory=list)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(
            word
            for option in self.options
            for word in (*(["!"] if option.negated else []), option.name, *option.values)
        )


class _Reader:
    """Groups words into the rule's head and the blocks of its extensions."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._at = 0
        self._negated = False
        self._block: _Block | None = None
        self._protocol = ""
        self._parts: list[m.Match | _Block] = []

    def read(self) -> list[m.Match | _Block]:
        while self._at < len(self._words):
            word = self._take()
            if word == "!":
                if self._negated:
                    raise BadWords("! twice")
                self._negated = True
                continue
            if word in _HEAD:
                self._parts += self._head(_HEAD[word], self._take())
                self._block = None
            elif word in _BLOCKS:
                if self._negated:
                    raise BadWords(f"! {word}")
                self._open(_BLOCKS[word], self._take())
            elif word in ("-f", "--fragment"):
                negation = ("!",) if self._negated else ()
                self._parts.append(m.OpaqueMatch("fragment", (*negation, "-f")))
            elif word in ("-4", "--ipv4", "-6", "--ipv6"):
                pass
            elif word in ("-c", "--set-counters"):
                self._take()
                self._take()
            elif word.startswith("-"):
                self._option(word)
            else:
                raise BadWords(f"{word!r} belongs to nothing")
            self._negated = False
        if self._negated:
            raise BadWords("a ! at the end")
        return self._parts

    def _take(self) -> str:
        if self._at >= len(self._words):
            raise BadWords(f"nothing behind {self._words[-1]!r}" if self._words else "no words")
        self._at += 1
        return self._words[self._at - 1]

    def _open(self, kind: str, name: str) -> None:
        self._block = _Block(kind, name)
        self._parts.append(self._block)

    def _option(self, name: str) -> None:
        if self._block is None:
            if not self._protocol:
                raise BadWords(f"{name} belongs to no extension")
            self._open("-m", self._protocol)  # iptables loads the protocol's own match by itself
        assert self._block is not None
        values = [self._take() for _ in range(_ARITY.get(name, 0))]
        if name not in _ARITY:
            while self._at < len(self._words) and not self._is_option(self._words[self._at]):
                values.append(self._take())
        self._block.options.append(Option(name, tuple(values), self._negated))

    @staticmethod
    def _is_option(word: str) -> bool:
        return word == "!" or (word.startswith("-") and not word[1:2].isdigit() and len(word) > 1)

    def _head(self, kind: str, value: str) -> list[m.Match]:
        negated = self._negated
        match kind:
            case "-i" | "-o":
                side = m.IN if kind == "-i" else m.OUT
                name = value.removesuffix("+")
                return [m.InterfaceIs(side, name, value.endswith("+"), negated)] if name or negated else []
            case "-p":
                return self._protocol_match(value, negated)
            case _:
                side = m.SOURCE if kind == "-s" else m.DESTINATION
                where = network(value)
                return [] if where.endswith("/0") and not negated else [m.AddressIn(side, where, negated)]

    def _protocol_match(self, value: str, negated: bool) -> list[m.Match]:
        text = value.lower()
        if text in ("all", "ip", "0"):
            return []
        number = int(text) if text.isdecimal() else _PROTOCOLS.get(text)
        if number is None:
            return [m.OpaqueMatch("protocol", (*(["!"] if negated else []), value))]
        self._protocol = "" if negated else _PROTOCOL_MODULES.get(number, "")
        return [m.ProtocolIs(number, negated)]


def network(value: str) -> str:
    """Canonical CIDR of an address with a prefix length, a mask or neither.

    Raises:
        BadWords: no such address, or a mask with holes.
    """
    with suppress(ValueError):
        return str(ipaddress.ip_network(value, strict=False))
    address, _, mask = value.partition("/")
    with suppress(ValueError):
        # A written-out IPv6 mask; ipaddress takes only those of IPv4.
        bits = int(ipaddress.IPv6Address(mask))
        length = bits.bit_count()
        if bits == ((1 << length) - 1) << 128 - length:
            return str(ipaddress.ip_network(f"{address}/{length}", strict=False))
    raise BadWords(f"{value!r} is not an address")


def _matches(block: _Block) -> list[m.Match]:
    reader = MATCHES.get(block.name)
    with suppress(Unknown, ValueError):
        if reader is not None:
            return reader(block.options)
    return [m.OpaqueMatch(block.name, block.words)]


def _target(block: _Block) -> m.Target:
    if block.kind == "-g":
        if block.options:
            raise BadWords(f"options behind -g {block.name}")
        return m.Goto(block.name)
    reader = TARGETS.get(block.name)
    with suppress(Unknown, ValueError):
        if reader is not None:
            return reader(block.options)
    return m.OpaqueTarget(block.name, block.words) if block.options or reader else m.Jump(block.name)
