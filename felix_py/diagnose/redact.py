"""Takes secrets out of texts for other people's eyes: known values wherever they are, and what looks like one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote

HIDDEN = "[hidden]"

_SHORTEST = 4
"""Characters of a value that is looked for everywhere; patterns alone find shorter ones."""

_WORDS = (
    r"passw(?:or)?d|passphrase|secret|token|credential|api[-_]?key|private[-_]?key"
    r"|client-key-data|authorization"
)
_SENSITIVE = re.compile(_WORDS + r"|\bauth\b|_KEY$", re.IGNORECASE)
_VALUE = r"""("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[^\s,;}\]"']+)"""

# Each is bounded to the left, so that a long word takes linear time.
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), HIDDEN),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"), HIDDEN),
    (re.compile(r"(\b(?:bearer|basic)\s{1,3})[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(://)[^/\s:@]{1,200}:[^/\s@]{1,200}@"), rf"\1{HIDDEN}@"),
    (re.compile(rf"(md5[-_]password\s{{1,5}}){_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(rf"((?:{_WORDS})(?!-?file)[\w.-]{{0,40}}[\"']?\s{{0,5}}[:=]\s{{0,5}}){_VALUE}", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
)


def is_sensitive(name: str) -> bool:
    """Whether a key, option or environment variable of this name holds a secret."""
    return _SENSITIVE.search(name) is not None and not name.lower().endswith("file")


def secrets_of(found: object, under: bool = False) -> Iterator[str]:
    """The texts under sensitive keys of JSON or YAML. ``under``: it is itself under one."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from secrets_of(value, under or is_sensitive(str(key)))
    elif isinstance(found, list | tuple):
        for value in found:
            yield from secrets_of(value, under)
    elif under and isinstance(found, str | int | float) and not isinstance(found, bool):
        yield str(found)


class Redactor:
    """Knows the secrets of one node."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def learn(self, secrets: Iterable[str]) -> None:
        """Hide these values from now on, in every form in which they may be written."""
        for secret in secrets:
            # Of a text of several lines, each: some programs print them one by one.
            for one in {secret, secret.strip(), *secret.split("\n")}:
                if len(one.strip()) >= _SHORTEST:
                    self._known |= set(_forms(one))

    def __call__(self, text: str) -> str:
        """Returns the text without secrets."""
        for known in sorted(self._known, key=len, reverse=True):
            text = text.replace(known, HIDDEN)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        return text


def _forms(secret: str) -> Iterator[str]:
    yield secret
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield secret.replace("'", "''")
    yield quote(secret, safe="")
    raw = secret.encode(errors="surrogateescape")
    yield base64.b64encode(raw).decode()
    yield base64.b64encode(raw + b"\n").decode()
    yield base64.urlsafe_b64encode(raw).decode().rstrip("=")
