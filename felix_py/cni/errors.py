"""CNI errors (CNI 1.1.0, "Error"). docs/cni.md lists our own codes."""

from __future__ import annotations

import enum

import msgspec

SUPPORTED_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec for input that is not JSON, not UTF-8 inside a string, or nested too deeply."""


class Code(enum.IntEnum):
    """Error codes; 100 and up are ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    ENVIRONMENT = 4
    IO = 5
    DECODING = 6
    INVALID_CONFIG = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    INTERNAL = 100
    ADDRESS_UNAVAILABLE = 101
    POOL_EXHAUSTED = 102
    INTERFACE = 103
    ALREADY_ATTACHED = 104
    DELEGATE = 105
    CHECK_FAILED = 106
    FURTHER_INTERFACE = 107


class CNIError(Exception):
    """A failed call, as reported to the runtime."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        self.code = code
        self.message = _shortened(message, 2000)
        self.details = _shortened(details, 8000)
        super().__init__(self.message)

    def encode(self, version: str) -> bytes:
        """The error's JSON for a caller with CNI ``version``, known or not."""
        shown = version if version in SUPPORTED_VERSIONS else "1.0.0"
        fields: dict[str, str | int] = {"cniVersion": shown, "code": self.code, "msg": self.message}
        if self.details:
            fields["details"] = self.details
        return msgspec.json.encode(fields)


def _shortened(text: str, most: int) -> str:
    """Bound a text that may quote a caller, a plugin or a tool at any length."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text)} characters)"
