"""Text for iptables-restore and of iptables-save: quoting, rule comments, parsing. No I/O.

Every rule of ours in a built-in chain has a comment ``felix:HASH text``. HASH (16 hex digits) is a digest of the
words that encode the planned rule, so that rules are told without parsing how the tools print them; ``text`` is
for people. Rules in our own chains are told by the chain's seal (:mod:`felix_py.ruleset.seal`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from msgspec import Struct

from felix_py.layout import CHAIN_PREFIX, COMMENT_PREFIX
from felix_py.ruleset import seal
from felix_py.ruleset.encode import Words, encode, encode_target, shown
from felix_py.ruleset.model import Body, Rules, RuleSpec
from felix_py.ruleset.words import brief, parse_text, split, target_of

BUILTIN_CHAINS = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
TABLES = ("raw", "mangle", "nat", "filter")

_COMMENT_BYTES = 255
"""xt_comment holds 256 bytes with the final NUL; the tools cut longer comments, even inside a character."""

_COMMENT = ("-m", "comment", "--comment")

_LINE_BYTES = 10_000
"""iptables-restore reads lines into 10,240 bytes and takes the rest of a longer line for another line."""

_WORD_BYTES = 1_000
"""iptables-restore refuses words from 1,024 bytes on."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:,=+!%@~-]+")
_PLAIN_LINE = re.compile(r"[A-Za-z0-9_./:,=+!%@~ -]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OUR_CHAIN = re.compile(re.escape(CHAIN_PREFIX) + r"[A-Za-z0-9_-]+")

_CHAIN_NAME_BYTES = 28
"""XT_EXTENSION_MAXNAMELEN less the final NUL."""


class BadRule(ValueError):
    """A rule or name that must not be passed to iptables-restore; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as the tools spell it after ``-A CHAIN``. ``spec``: None if read.

    ``hash``: the one in its comment, or its digest in the chain's seal; empty if foreign.
    """

    hash: str
    text: str
    spec: RuleSpec | None = field(default=None, compare=False)

    @property
    def body(self) -> Body:
        """Matches and target."""
        return self.spec.body if self.spec else parse_text(self.text).body

    @property
    def leads_to(self) -> str:
        """The chain that it jumps or goes to, or another target, or empty."""
        return self.spec.leads_to if self.spec else target_of(self.text)

    @property
    def is_seal(self) -> bool:
        """Whether it is no rule for packets, but tells which rules of its chain are ours."""
        return seal.is_seal(self.text)

    def __str__(self) -> str:
        """For people: without the hash, with the comment's text."""
        if self.is_seal:
            return str(seal.SEAL.why)
        if self.spec is None:
            return brief(self.text)
        return f'{shown(self.spec)} "{self.spec.why}"' if self.spec.why else shown(self.spec)


def check_chain(table: str, name: str) -> None:
    """Check that we may write a chain.

    Raises:
        BadRule: unknown table, or a chain name that is not ours or that the tools refuse.
    """
    if table not in TABLES:
        raise BadRule(f"there is no table {table!r} to write to")
    if not _OUR_CHAIN.fullmatch(name) or len(name) > _CHAIN_NAME_BYTES:
        raise BadRule(
            f"{name!r} is not a chain name of ours ({CHAIN_PREFIX}…, {_CHAIN_NAME_BYTES} characters at most)"
        )


def quote(word: str) -> str:
    """Quote one word for an iptables-restore line.

    Raises:
        BadRule: control characters, text that is not Unicode, or too long.
    """
    if _CONTROL.search(word):
        raise BadRule(f"control character in {word[:80]!r}")
    try:
        size = len(word.encode())
    except UnicodeEncodeError:
        raise BadRule(f"not Unicode: {word[:80]!r}") from None
    if size > _WORD_BYTES:
        raise BadRule(f"word of {size} bytes: {word[:40]!r}…")
    if _PLAIN.fullmatch(word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def render(spec: RuleSpec) -> Rule:
    """Render a planned rule of a built-in chain with its hash comment; its ``why`` becomes the comment's text.

    Characters that a comment cannot hold are replaced in it, so that no policy is refused for its description.
    Anywhere else they are refused.

    Raises:
        BadRule: see :func:`quote`; or the rule is too long.
    """
    matches, target, about = encode(spec.matches), encode_target(spec.target), str(spec.why)
    hashed = (*matches, *_COMMENT, about, *target) if about else (*matches, *target)
    digest = hashlib.sha256("\0".join(hashed).encode(errors="surrogatepass")).hexdigest()[:16]
    comment = _cut(f"{COMMENT_PREFIX}{digest} {about}") if about else f"{COMMENT_PREFIX}{digest}"
    # The comment is the last match: it costs nothing for packets that another match excludes.
    text = _whole(_line(matches), " ".join((*_COMMENT, quote(comment))), _line(target))
    return Rule(digest, text, spec)


def render_chain(rules: Rules) -> tuple[Rule, ...]:
    """Render the planned rules of a chain of ours, closed and sealed (:mod:`felix_py.ruleset.seal`).

    Raises:
        BadRule: see :func:`render`.
    """
    rendered = tuple(map(_bare, seal.closed(rules)))
    if not rendered:
        return ()
    hash_, comments = seal.comments([rule.hash for rule in rendered], seal.about(rules))
    texts = (" ".join((*_COMMENT, quote(comment))) for comment in comments)
    return (*rendered, *(Rule(hash_, text, seal.SEAL) for text in texts))


def _bare(spec: RuleSpec) -> Rule:
    """A rule without a comment."""
    matches, target = encode(spec.matches), encode_target(spec.target)
    return Rule(seal.digest((*matches, *target)), _whole(_line(matches), _line(target)), spec)


def _whole(*parts: str) -> str:
    text = " ".join(filter(None, parts))
    if len(text.encode()) > _LINE_BYTES:
        raise BadRule(f"rule of {len(text.encode())} bytes: {text[:80]}…")
    return text


def _line(words: Words) -> str:
    """Words of an iptables-restore line. Nearly all are plain, which one look at the whole line tells."""
    line = " ".join(words)
    plain = "" not in words and line.count(" ") == len(words) - 1 and _PLAIN_LINE.fullmatch(line)
    if plain and len(line) <= _WORD_BYTES:
        return line
    return " ".join(map(quote, words))


def _cut(comment: str) -> str:
    printable = _CONTROL.sub("?", comment).encode(errors="replace")
    return printable[:_COMMENT_BYTES].decode(errors="ignore")


class SavedTable(Struct):
    """One table of iptables-save: our chains, and the built-in chains with all their rules."""

    chains: dict[str, list[Rule]] = {}
    builtins: dict[str, list[Rule]] = {}


def parse_save(text: str) -> dict[str, SavedTable]:
    """Parse the output of iptables-save: our chains, and the built-in ones."""
    tables: dict[str, SavedTable] = {}
    table, texts = SavedTable(), dict[str, list[str]]()
    texts_of: dict[str, dict[str, list[str]]] = {}
    # Not splitlines(), which also splits at characters that a comment may hold.
    for line in text.split("\n"):
        if line.startswith("-A "):
            _, name, rule = (*line.split(" ", 2), "")[:3]
            if name.startswith(CHAIN_PREFIX):
                texts.setdefault(name, []).append(rule)
            elif name in BUILTIN_CHAINS:
                table.builtins.setdefault(name, []).append(Rule(_hash(rule), rule))
        elif line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            if name.startswith(CHAIN_PREFIX):
                texts.setdefault(name, [])
        elif line.startswith("*"):
            table = tables.setdefault(line[1:].strip(), SavedTable())
            texts = texts_of.setdefault(line[1:].strip(), {})
    for name, table in tables.items():
        table.chains.update((chain, _own_rules(rules)) for chain, rules in texts_of[name].items())
    return tables


def _own_rules(texts: list[str]) -> list[Rule]:
    """The rules of a chain of ours."""
    found = seal.identities([tuple(split(text)) for text in texts])
    return [Rule(identity, text) for identity, text in zip(found, texts, strict=True)]


def _hash(rule: str) -> str:
    """The hash in the rule's comment; empty if the rule is not ours."""
    return seal.commented(split(rule)) if COMMENT_PREFIX in rule else ""
