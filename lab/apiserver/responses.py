"""JSON answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from lab.apiserver.store import encode


def json_response(document: Any, status: int = 200, warnings: Sequence[str] = ()) -> web.Response:
    """A JSON answer with the API's warning headers (RFC 7234 section 5.5)."""
    body = document if isinstance(document, bytes) else encode(document)
    response = web.Response(body=body, status=status, content_type="application/json")
    for warning in warnings:
        escaped = warning.replace("\\", "\\\\").replace('"', '\\"')
        response.headers.add("Warning", f'299 - "{escaped}"')
    return response
