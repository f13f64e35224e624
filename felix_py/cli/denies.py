"""``felix-py denies``: the packets that policy denied on this node, with their ends and the reasons."""

from __future__ import annotations

import enum
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from felix_py.backoff import Backoff
from felix_py.cli import denied, options
from felix_py.cli.asking import Refused, as_object, ask, echo, ending_quietly
from felix_py.cli.denied import clean
from felix_py.config import ConfigError

if TYPE_CHECKING:
    pass

_SILENCE_SECONDS = 45.0
"""The agent sends an empty line at least every 15 seconds."""
_RECONNECT = (0.2, 5.0)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")


class Form(enum.StrEnum):
    """How denied packets are printed."""

    TEXT = "text"
    WIDE = "wide"
    JSON = "json"


def denies(
    follow: options.Follow = False,
    output: Annotated[
        Form,
        typer.Option(
            "--output",
            "-o",
            help="text: by pair of ends, or with -f a short line each; wide: each with addresses and the agent's "
            "words; json: an object a line.",
        ),
    ] = Form.TEXT,
    since: options.Since = "",
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Only the newest N events. [default: all that the agent keeps]",
            show_default=False,
        ),
    ] = None,
    namespace: options.DeniedNamespace = "",
    pod: options.DeniedPod = "",
    agent_socket: options.AgentSocket = options.DEFAULT_AGENT_SOCKET,
) -> None:
    """Show what was denied on this node.

    An agent sees the egress of its own node's pods and the ingress to them: ask on the node of either end. Of a
    rule that denies many packets only some are logged (felix-py agent --deny-log-rate); the metrics count all.
    Equal packets within two seconds are one event; x3 says that there were three.

    Exit codes: 0 done (also with Ctrl-C), 1 no agent answers or its deny log is off, 2 wrong option.
    """
    from http.client import HTTPException

    place = _checked(agent_socket, pod)
    filters = {key: value for key, value in (("namespace", namespace), ("pod", pod)) if value}
    show = Shown(output, _seconds(since))
    try:
        with ending_quietly():
            if follow:
                _follow(place, filters, limit, show)
            else:
                _list(place, filters, limit, show)
    except (OSError, HTTPException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _fail(f"no agent answers at {place} ({reason}); run it as root on a node with an agent")
    except Refused as error:
        _fail(f"{place}: {clean(str(error))}")


def _checked(place: str, pod: str) -> str:
    from felix_py.observe.ask import check

    try:
        check(place)
    except ConfigError as error:
        _fail(str(error), 2)
    if pod and (pod.count("/") != 1 or pod.startswith("/") or pod.endswith("/")):
        _fail(f"--pod {pod}: must be NAMESPACE/NAME", 2)
    return place


# --- asking ------------------------------------------------------------------------------------------


def _list(place: str, filters: dict[str, str], limit: int | None, show: Shown) -> None:
    """Print the agent's events. Raises the errors of :func:`ask`."""
    answer = _answer(place, filters if limit is None else {**filters, "limit": str(limit)})
    _check_state(answer)
    show.all(answer.get("events", ()))


def _answer(place: str, query: dict[str, str]) -> dict[str, Any]:
    with ask(place, "/denies", query) as response:
        return as_object(response.read())


def _check_state(answer: dict[str, Any]) -> None:
    state, reason = answer.get("state"), answer.get("reason")
    if state == "off":
        _fail(clean(str(reason)))
    if state != "on":
        _say(f"denied packets are not read at present: {clean(str(reason))}")


def _follow(place: str, filters: dict[str, str], limit: int | None, show: Shown) -> None:
    """Print present and coming events until interrupted, reconnecting after a restart of the agent.

    Raises the errors of :func:`ask`, for the first connection only.
    """
    from http.client import HTTPException

    _check_state(_answer(place, {**filters, "limit": "0"}))
    last: int | None = None
    backoff, gone = Backoff(*_RECONNECT, spread=0), False
    while True:
        query = {**filters, "follow": "1"}
        if last is not None:
            query["since"] = str(last)
        elif limit is not None:
            query["limit"] = str(limit)
        try:
            with ask(place, "/denies", query, _SILENCE_SECONDS) as response:
                if gone:
                    _say("the agent is back")
                gone = False
                backoff.reset()
                newest = _number(response.headers.get("Felix-Last-Id"))
                # Ids begin with the time: they go back with the clock when the agent starts anew.
                last = newest if last is None else min(last, newest)
                while line := response.readline():
                    if line.strip():
                        event = as_object(line)
                        last = max(last, _number(event.get("id")))
                        show.one(event)
        except (OSError, HTTPException, Refused) as error:
            if last is None:
                raise error
        if not gone:
            _say("the agent is gone; waiting for it")
        gone = True
        time.sleep(backoff.delay())


def _number(value: object) -> int:
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else 0


# --- printing ----------------------------------------------------------------------------------------


class Shown:
    """Prints events in one form, except those that are too old."""

    def __init__(self, form: Form, seconds: float | None) -> None:
        """``seconds``: greatest age of an event's last packet at the start; None: any."""
        self._form = form
        self._earliest = None if seconds is None else time.time() - seconds

    def all(self, events: Sequence[dict[str, Any]]) -> None:
        """Print present events."""
        wanted = list(filter(self._recent, events))
        if self._form is not Form.TEXT:
            for event in wanted:
                self.one(event)
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in denied.by_pair(wanted, width):
            echo(line)
        if not wanted:
            _say("nothing like that was denied here" if events else "nothing was denied here")

    def one(self, event: dict[str, Any]) -> None:
        """Print an event on a line of its own."""
        if not self._recent(event):
            return
        match self._form:
            case Form.JSON:
                echo(json.dumps(event, separators=(",", ":")))
            case Form.WIDE:
                echo(denied.wide(event))
            case Form.TEXT:
                echo(denied.line(event))

    def _recent(self, event: dict[str, Any]) -> bool:
        when = denied.moment(str(event.get("until", "")))
        return self._earliest is None or (when is not None and when.timestamp() >= self._earliest)


def _seconds(text: str) -> float | None:
    """A duration in kubectl's notation, in seconds; None if empty."""
    if not text:
        return None
    if not _DURATION.fullmatch(text):
        _fail(f"--since {text}: must be a duration such as 30s, 5m, 2h or 1h30m", 2)
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _say(text: str) -> None:
    typer.echo(f"felix-py denies: {text}", err=True)


def _fail(text: str, code: int = 1) -> NoReturn:
    _say(text)
    raise typer.Exit(code)
