"""What can go wrong with a request to :class:`tests.support.fakeapi.FakeApi`."""

from __future__ import annotations

import json

from tests.support.fakeapi import Exchange, Fault, Json, pod, status


def refuse(code: int, reason: str = "", message: str = "refused by the test", retry_after: str = "") -> Fault:
    """Answer with a Status."""

    def fault(exchange: Exchange) -> bool:
        exchange.refuse(code, reason, message, headers={"Retry-After": retry_after} if retry_after else None)
        return True

    return fault


def error_event(code: int, reason: str, message: str = "told by the test") -> Fault:
    """Begin the watch, send an ERROR event, end."""

    def fault(exchange: Exchange) -> bool:
        exchange.begin_stream()
        exchange.event("ERROR", status(code, reason, message))
        exchange.end_stream()
        return True

    return fault


def instant_eof(exchange: Exchange) -> bool:
    """Accept the watch and end it at once."""
    exchange.begin_stream()
    exchange.end_stream()
    return True


def reset(exchange: Exchange) -> bool:
    """Close without a word."""
    exchange.cut()
    return True


def hang(exchange: Exchange) -> bool:
    """Take the request and never answer."""
    exchange.hang()
    return True


def silent(exchange: Exchange) -> bool:
    """Begin the watch and say nothing more: a half-open connection, as the client sees it."""
    exchange.begin_stream()
    exchange.hang()
    return True


def line(data: bytes) -> Fault:
    """Begin the watch with a line of one's own, then go on as usual."""

    def fault(exchange: Exchange) -> bool:
        exchange.begin_stream()
        exchange.raw(data + b"\n")
        return False

    return fault


def truncated(obj: Json) -> Fault:
    """Send the first half of an event, then break the connection."""

    def fault(exchange: Exchange) -> bool:
        data = json.dumps({"type": "ADDED", "object": obj}).encode()
        exchange.begin_stream()
        exchange.raw(data[: len(data) // 2])
        exchange.cut()
        return True

    return fault


def half_event_then_end(obj: Json) -> Fault:
    """Send the first half of an event, then end the watch as if that were all of it."""

    def fault(exchange: Exchange) -> bool:
        data = json.dumps({"type": "ADDED", "object": obj}).encode()
        exchange.begin_stream()
        exchange.raw(data[: len(data) // 2])
        exchange.end_stream()
        return True

    return fault


def unfinished_list(exchange: Exchange) -> bool:
    """Begin a WatchList, send one object, end without the bookmark that completes the list."""
    exchange.begin_stream()
    exchange.event("ADDED", pod("unfinished"))
    exchange.end_stream()
    return True
