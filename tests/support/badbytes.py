"""Bytes that no API server should send in place of a JSON value, each of them as one value."""

from __future__ import annotations

SPOILT_VALUES = (
    b'"\xff\xfe"',
    b'"a\xc3("',
    b'"\x00"',
    b'"a\nb"',
    b'"\\ud800"',
    b'"\\udc00\\u0041"',
    b'"\\x"',
    b'"\\u0000"',
    b'"' + b"z" * 100_000 + b'"',
    b"1" * 5000,
    b"-" + b"1" * 30,
    b"1e999",
    b"NaN",
    b"-",
    b"tru",
    b"07",
    b"null",
    b"true",
    b"5",
    b"1.5",
    b'""',
    b'"x"',
    b"{}",
    b"[]",
    b"[[null]]",
    b'{"\xff":1}',
    b'{"\\ud800":"\xff"}',
    b"[" * 5000 + b"]" * 5000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
)
"""Invalid UTF-8, control characters, lone surrogates, huge numbers, deep nesting, no JSON at all, other types."""
