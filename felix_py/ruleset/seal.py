"""Which rules of a chain of ours are ours: the chain's seal tells, a rule that no packet reaches. No I/O.

A comment is a match to the kernel, which costs each packet that meets it 20 ns (legacy) to 50 ns (nft). So the
rules of our chains have none. Behind the last one, which ends the chain for every packet, stands the *seal*: a
rule with nothing but a comment ``felix:HASH DIGESTS text``. DIGESTS are those of the chain's rules in order, each
eight hex digits, made of the words that encode a rule. HASH is that of all of them and of the text, which is for
people. The seal of a long chain is several rules with one HASH.

A rule that was read has the digest that its words have, if the seal names it. A rule in the place of one that is
missing is that one, altered. All others are not ours. (Rules in built-in chains, and those of versions before the
seal, have a comment ``felix:HASH`` each.)
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher

from msgspec import Struct
from msgspec.structs import replace

from felix_py.layout import CHAIN_PREFIX, COMMENT_PREFIX
from felix_py.ruleset.encode import encode, encode_target
from felix_py.ruleset.model import RETURN, Goto, Rule, Rules, RuleSpec, Verdict
from felix_py.ruleset.words import BadWords, our_hash, parse, split
from policy.ir import Origin

SEAL = RuleSpec((), None, "the seal of this chain")
"""Stands for the rules of a seal in reports."""

_DIGITS = 8
_MOST_DIGESTS = 16
"""Digests in one comment (of 255 bytes), so that as much room is left for text."""

_ABOUT_BYTES = 255 - len(COMMENT_PREFIX) - 16 - 2 - _MOST_DIGESTS * _DIGITS
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_COMMENT = ("-m", "comment", "--comment")
_BEGINNING = " ".join(_COMMENT)
_DIGESTS = rf"(?:[0-9a-f]{{{_DIGITS}}})+"
_SEAL = re.compile(rf"{re.escape(COMMENT_PREFIX)}([0-9a-f]{{16}}) ({_DIGESTS})(?: (.*))?", re.DOTALL)


def digest(words: Iterable[str]) -> str:
    """The digest of a rule's words, which are without our comment."""
    return _sha256(words)[:_DIGITS]


def digest_of(spec: RuleSpec) -> str:
    """The digest of a planned rule."""
    return digest((*encode(spec.matches), *encode_target(spec.target)))


def closed(rules: Rules) -> Rules:
    """A chain's rules, so that no packet passes the last one: what would, returns."""
    last = rules[-1] if rules else RuleSpec()
    ends = not last.matches and isinstance(last.target, Verdict | Goto)
    return rules if ends or not rules else (*rules, RuleSpec((), RETURN))


def about(rules: Rules) -> str:
    """What a chain is for, by what its rules are for: each policy and direction once."""
    said = (f"{r.why.policy} {r.why.direction.lower()}" if isinstance(r.why, Origin) else r.why for r in rules)
    return ", ".join(dict.fromkeys(filter(None, said)))


def comments(digests: Sequence[str], text: str) -> tuple[str, list[str]]:
    """Returns the HASH and the comments of the seal of a chain that has rules with these digests."""
    text = _CONTROL.sub("?", text).encode(errors="replace")[:_ABOUT_BYTES].decode(errors="ignore").strip()
    hash_ = _hash(digests, text)
    parts = ["".join(digests[at : at + _MOST_DIGESTS]) for at in range(0, len(digests), _MOST_DIGESTS)]
    made = [f"{COMMENT_PREFIX}{hash_} {part}" for part in parts]
    if text:
        made[0] += f" {text}"
    return hash_, made


def is_seal(text: str) -> bool:
    """Whether the text of a rule is that of a seal, or of a part of one."""
    if not text.startswith(_BEGINNING):
        return False
    words = tuple(split(text))
    return len(words) == len(_COMMENT) + 1 and _SEAL.fullmatch(words[-1]) is not None


def commented(words: Iterable[str]) -> str:
    """The hash in a rule's own comment; empty: it has none of ours."""
    left = iter(words)
    for word in left:
        if word == "--comment" and (ours := our_hash(next(left, ""))):
            return ours
    return ""


def identities(rules: Sequence[Sequence[str]]) -> list[str]:
    """Returns for the words of each rule of a chain of ours the hash or digest of the planned rule that it is, or
    was before somebody altered it; empty: it is not ours."""
    seal = _Seal.of(rules)
    # A seal that is damaged says nothing.
    found = ["" if any(map(_SEAL.fullmatch, words)) else commented(words) for words in rules]
    if seal.digests:
        rest = [at for at in range(len(rules)) if at not in seal.at]
        for at, identity in zip(rest, _aligned(seal.digests, [rules[at] for at in rest]), strict=True):
            found[at] = identity
    for at in seal.at:
        found[at] = seal.hash
    return found


def identified(chain: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a chain, each with the hash or digest that says that it is ours."""
    if not chain.startswith(CHAIN_PREFIX):
        return tuple(rules)
    found = identities([tuple(split(rule.text)) for rule in rules])
    return tuple(replace(rule, hash=identity) for rule, identity in zip(rules, found, strict=True))


class _Seal(Struct, frozen=True):
    """The seal that was found. ``at``: its places; empty: there is none, or somebody has damaged it."""

    hash: str = ""
    digests: tuple[str, ...] = ()
    at: frozenset[int] = frozenset()

    @classmethod
    def of(cls, rules: Sequence[Sequence[str]]) -> _Seal:
        parts = [
            (at, found)
            for at, words in enumerate(rules)
            if tuple(words[:-1]) == _COMMENT and (found := _SEAL.fullmatch(words[-1]))
        ]
        joined = "".join(found[2] for _, found in parts)
        digests = tuple(joined[at : at + _DIGITS] for at in range(0, len(joined), _DIGITS))
        if not parts or {found[1] for _, found in parts} != {_hash(digests, parts[0][1][3] or "")}:
            return cls()
        return cls(parts[0][1][1], digests, frozenset(at for at, _ in parts))


def _hash(digests: Sequence[str], text: str) -> str:
    return _sha256((*digests, text))[:16]


def _sha256(words: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(words).encode(errors="surrogatepass")).hexdigest()


def _aligned(digests: Sequence[str], rules: Sequence[Sequence[str]]) -> Iterator[str]:
    """For each rule the digest that it has, or that it has the place of."""
    left = Counter(digests)
    found: list[str] = []
    for words in rules:
        one = digest(words)
        if not left[one]:
            one = _canonical(words)
        found.append(one if left[one] else "")
        if left[one]:
            left[one] -= 1
    if left.total() and "" in found:
        _find_altered(digests, found)
    yield from found


def _canonical(words: Sequence[str]) -> str:
    """The digest of a rule in our words: the tools may print it in others."""
    try:
        spec, said = parse(words)
    except BadWords:
        return ""
    return "" if said else digest_of(spec)


def _find_altered(digests: Sequence[str], found: list[str]) -> None:
    """Give rules that are not ours the digests that are missing in their place."""
    missing = Counter(digests) - Counter(found)
    for what, a, b, c, d in SequenceMatcher(None, digests, found, autojunk=False).get_opcodes():
        if what != "replace":
            continue
        lost = [one for one in digests[a:b] if missing[one] > 0]
        for at in (at for at in range(c, d) if not found[at]):
            if lost:
                found[at] = lost.pop(0)
                missing[found[at]] -= 1
