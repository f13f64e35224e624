"""The codes of a NOTIFICATION in words (RFC 4271 4.5; IANA's registry of BGP error codes)."""

from __future__ import annotations

import re
from collections.abc import Mapping

_CODES: Mapping[int, str] = {
    1: "Message Header Error",
    2: "OPEN Message Error",
    3: "UPDATE Message Error",
    4: "Hold Timer Expired",
    5: "Finite State Machine Error",
    6: "Cease",
    7: "ROUTE-REFRESH Message Error",
}
_SUBCODES: Mapping[tuple[int, int], str] = {
    (1, 1): "Connection Not Synchronized",
    (1, 2): "Bad Message Length",
    (1, 3): "Bad Message Type",
    (2, 1): "Unsupported Version Number",
    (2, 2): "Bad Peer AS",
    (2, 3): "Bad BGP Identifier",
    (2, 4): "Unsupported Optional Parameter",
    (2, 6): "Unacceptable Hold Time",
    (2, 7): "Unsupported Capability",  # RFC 5492
    (2, 11): "Role Mismatch",  # RFC 9234
    (3, 1): "Malformed Attribute List",
    (3, 2): "Unrecognized Well-known Attribute",
    (3, 3): "Missing Well-known Attribute",
    (3, 4): "Attribute Flags Error",
    (3, 5): "Attribute Length Error",
    (3, 6): "Invalid ORIGIN Attribute",
    (3, 8): "Invalid NEXT_HOP Attribute",
    (3, 9): "Optional Attribute Error",
    (3, 10): "Invalid Network Field",
    (3, 11): "Malformed AS_PATH",
    (5, 1): "Receive Unexpected Message in OpenSent State",  # RFC 6608
    (5, 2): "Receive Unexpected Message in OpenConfirm State",
    (5, 3): "Receive Unexpected Message in Established State",
    (6, 1): "Maximum Number of Prefixes Reached",  # RFC 4486
    (6, 2): "Administrative Shutdown",
    (6, 3): "Peer De-configured",
    (6, 4): "Administrative Reset",
    (6, 5): "Connection Rejected",
    (6, 6): "Other Configuration Change",
    (6, 7): "Connection Collision Resolution",
    (6, 8): "Out of Resources",
    (6, 9): "Hard Reset",  # RFC 8538
    (6, 10): "BFD Down",  # RFC 9384
    (7, 1): "Invalid Message Length",  # RFC 7313
}
_EXABGP = re.compile(r"(notification (?:sent|received)) \((\d{1,3}),(\d{1,3})\)")


def words(code: int, subcode: int) -> str:
    """As ``6/2 Cease: Administrative Shutdown``."""
    named = [text for text in (_CODES.get(code), _SUBCODES.get((code, subcode))) if text]
    return f"{code}/{subcode} {': '.join(named)}".rstrip()


def explained(reason: str, said: str = "") -> str:
    """ExaBGP's reason for the end of a session, with codes in words; ``said``: the peer's own text (RFC 9003)."""
    found = _EXABGP.sub(lambda match: f"{match[1]} {words(int(match[2]), int(match[3]))}", reason)
    return f"{found}: {said}" if said and found != reason and said not in found else found
