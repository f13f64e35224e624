"""``felix-py denies``: which packets policy denied on this node, whose, and why."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import SplitResult, urlencode, urlsplit

import typer

if TYPE_CHECKING:
    from http.client import HTTPResponse

DEFAULT_AGENT = "http://127.0.0.1:9099"

_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 45.0
"""The agent sends an empty line every 15 seconds at least."""
_RECONNECT_FIRST, _RECONNECT_MOST = 0.2, 5.0


def denies(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is denied from now on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Only the newest N. [default: all that the agent keeps]", show_default=False
        ),
    ] = None,
    namespace: Annotated[
        str, typer.Option(metavar="NS", help="Only from or to pods of a namespace.", show_default=False)
    ] = "",
    pod: Annotated[str, typer.Option(metavar="NS/POD", help="Only from or to one pod.", show_default=False)] = "",
    agent: Annotated[
        str, typer.Option(envvar="FELIX_PY_AGENT", metavar="URL", help="The agent's --health-address.")
    ] = DEFAULT_AGENT,
) -> None:
    """Show what was denied on this node.

    Equal packets within two seconds are one line; x3 says that there were three. An agent sees the egress of its
    own node's pods and the ingress to them: ask on the node of either end. Of one that denies many packets a
    rule logs only some (felix-py agent --deny-log-rate); the metrics count all.

    Exit codes: 0 done (also with Ctrl-C), 1 no agent answers or its deny log is off, 2 wrong option.
    """
    from http.client import HTTPException

    place = _parse(agent, pod)
    filters = {key: value for key, value in (("namespace", namespace), ("pod", pod)) if value}
    try:
        if follow:
            _follow(place, filters, limit, as_json)
        else:
            _list(place, filters, limit, as_json)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except _Enough:
        # Whoever read our output has had enough; Python must not complain about it at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(0) from None
    except (OSError, HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _fail(f"no agent answers at {agent} ({reason}); run it on a node with an agent, or give --agent")
    except _Refused as error:
        _fail(f"{agent}: {_clean(str(error))}")


def _parse(agent: str, pod: str) -> SplitResult:
    try:
        place = urlsplit(agent)
        valid = place.scheme == "http" and bool(place.hostname) and place.path in ("", "/") and place.port != 0
    except ValueError:
        valid = False
    if not valid:
        _fail(f"--agent {agent}: must be http://ADDRESS:PORT", 2)
    if pod and (pod.count("/") != 1 or pod.startswith("/") or pod.endswith("/")):
        _fail(f"--pod {pod}: must be NAMESPACE/NAME", 2)
    return place


# --- asking ------------------------------------------------------------------------------------------


class _Refused(Exception):
    """The agent answered, but with an error, or not as an agent does."""


class _Enough(Exception):
    """Nobody reads what we print any more."""


@contextmanager
def _ask(place: SplitResult, query: dict[str, str], patience: float) -> Iterator[HTTPResponse]:
    """GET /denies. ``patience``: seconds to wait for each part of the answer.

    Raises:
        OSError, http.client.HTTPException: nobody answers, or the connection broke off.
        _Refused: the answer is an error.
    """
    from http.client import HTTPConnection

    assert place.hostname is not None
    connection = HTTPConnection(place.hostname, place.port or 80, timeout=_CONNECT_SECONDS)
    try:
        connection.connect()
        connection.sock.settimeout(patience)
        connection.request("GET", "/denies?" + urlencode(query))
        response = connection.getresponse()
        if response.status != 200:
            words = response.read(1000).decode(errors="replace").strip()
            raise _Refused(f"{words or response.reason} (HTTP {response.status})")
        yield response
    finally:
        connection.close()


def _list(place: SplitResult, filters: dict[str, str], limit: int | None, as_json: bool) -> None:
    """Print what there is.

    Raises:
        OSError, http.client.HTTPException, _Refused: see :func:`_ask`.
    """
    query = filters if limit is None else {**filters, "limit": str(limit)}
    with _ask(place, query, _CONNECT_SECONDS) as response:
        answer = _object(response.read())
    state, reason = answer.get("state"), answer.get("reason")
    if state == "off":
        _fail(_clean(str(reason)))
    if state != "on":
        _say(f"denied packets are not read at present: {_clean(str(reason))}")
    for event in answer.get("events", ()):
        _print(event, as_json)


def _follow(place: SplitResult, filters: dict[str, str], limit: int | None, as_json: bool) -> None:
    """Print what there is and what comes, until interrupted; an agent that restarts is waited for.

    Raises:
        OSError, http.client.HTTPException, _Refused: see :func:`_ask`; only of the first connection.
    """
    from http.client import HTTPException

    _list(place, filters, 0, as_json)
    last: int | None = None
    pause = _RECONNECT_FIRST
    while True:
        query = {**filters, "follow": "1"}
        if last is not None:
            query["since"] = str(last)
        elif limit is not None:
            query["limit"] = str(limit)
        try:
            with _ask(place, query, _SILENCE_SECONDS) as response:
                if pause != _RECONNECT_FIRST:
                    _say("the agent is back")
                pause = _RECONNECT_FIRST
                if last is None:
                    last = _number(response.headers.get("Felix-Last-Id"))
                while line := response.readline():
                    if line.strip():
                        event = _object(line)
                        last = max(last, _number(event.get("id")))
                        _print(event, as_json)
        except (OSError, HTTPException, _Refused) as error:
            if last is None:
                raise error
        if pause == _RECONNECT_FIRST:
            _say("the agent is gone; waiting for it")
        time.sleep(pause)
        pause = min(_RECONNECT_MOST, pause * 2)


def _object(text: bytes) -> dict[str, Any]:
    """
    Raises:
        _Refused: it is no JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _Refused("it answers something else; is it an agent of this version?")
    return found


def _number(value: object) -> int:
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else 0


# --- printing ----------------------------------------------------------------------------------------


def _print(event: dict[str, Any], as_json: bool) -> None:
    text = json.dumps(event, separators=(",", ":")) if as_json else describe(event)
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise _Enough from None


def describe(event: dict[str, Any]) -> str:
    """One event on a line; without any character that a terminal would obey."""
    direction = event.get("direction")
    words = [
        _clock(str(event.get("time", ""))),
        "DENIED",
        *([str(direction)] if direction else []),
        _end(event.get("source")),
        "->",
        _end(event.get("destination")),
        _service(event),
        *([f"x{event['count']}"] if event.get("count", 1) != 1 else []),
    ]
    return _clean(f"{' '.join(words)}: {event.get('message', '')}")


def _clock(text: str) -> str:
    """Local time; with the date where it is not today's."""
    from datetime import datetime

    try:
        when = datetime.fromisoformat(text).astimezone()
    except ValueError:
        return text
    today = when.date() == datetime.now().astimezone().date()
    return when.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _end(end: object) -> str:
    """Whose address, and the address."""
    if not isinstance(end, dict):
        return "?"
    owner = end.get("pod") or (f"node/{end['node']}" if end.get("node") else "world")
    return f"{owner} {end.get('address', '?')}"


def _service(event: dict[str, Any]) -> str:
    """Protocol and port, or ICMP's type."""
    protocol = event.get("protocol", "?")
    destination = event.get("destination")
    port = destination.get("port") if isinstance(destination, dict) else None
    if port is not None:
        return f"{port}/{protocol}"
    return f"{protocol} type {event['icmpType']}" if "icmpType" in event else f"{protocol}"


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _say(text: str) -> None:
    typer.echo(f"felix-py denies: {text}", err=True)


def _fail(text: str, code: int = 1) -> NoReturn:
    _say(text)
    raise typer.Exit(code)
