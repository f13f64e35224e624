"""``felix-py denies``: the packets that policy denied on this node, with their ends and the reasons."""

from __future__ import annotations

import enum
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
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

    What the agent cannot know is said on standard error: what was before it read, or too much at once.

    Exit codes: 0 done (also with Ctrl-C), 1 no agent answers, or its deny log is off or cannot be read, 2 wrong
    option.
    """
    from http.client import HTTPException

    place = _checked(agent_socket, pod)
    filters = {key: value for key, value in (("namespace", namespace), ("pod", pod)) if value}
    if (seconds := _seconds(since)) is not None:
        filters["within"] = str(math.ceil(seconds))
    show = Shown(output)
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
    """Print the agent's events. Raises the errors of :func:`ask`; typer.Exit: packets are not read at present."""
    answer = _answer(place, filters if limit is None else {**filters, "limit": str(limit)})
    _check_state(answer)
    events = answer.get("events", ())
    show.all(events)
    on = answer.get("state") == "on"
    _tell_completeness(answer, filters, show, nothing=on and limit != 0 and not events)
    if not on:
        raise typer.Exit(1)


def _tell_completeness(answer: dict[str, Any], filters: dict[str, str], show: Shown, *, nothing: bool) -> None:
    """Say what the answer cannot know: what was before, and what was too much at once. ``nothing``: no events."""
    back, wanted = _seconds_ago(answer, "goesBackSeconds"), float(filters.get("within", "inf"))
    if nothing and show.for_people:
        like = " like that" if filters.keys() - {"within"} else ""
        since = "" if wanted <= back else f", as far as is known: since {_clock(back)}"
        _say(f"nothing{like} was denied here{since}")
    elif "within" in filters and wanted > back:
        _say(f"what was denied before {_clock(back)} is not known any more, or was before the agent's start")
    if (missed := answer.get("missed")) and (ago := _seconds_ago(answer, "missedSecondsAgo")) <= wanted:
        when = f"too many came at once, the last {_clock(ago)}"
        _say(f"{missed} more packets have no event: {when}; the metrics count all")


def _seconds_ago(answer: dict[str, Any], name: str) -> float:
    found = answer.get(name)
    return float(found) if isinstance(found, int | float) else 0.0


def _clock(ago: float) -> str:
    return denied.clock(datetime.fromtimestamp(time.time() - ago, UTC).isoformat())


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
            query.pop("within", None)  # all that came after it is wanted
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
                        if "id" not in event:
                            _say(f"{_number(event.get('missed'))} more have no line: too many came at once")
                            continue
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
    """Prints events in one form."""

    def __init__(self, form: Form) -> None:
        self._form = form

    @property
    def for_people(self) -> bool:
        """Whether the events are a table."""
        return self._form is Form.TEXT

    def all(self, events: Sequence[dict[str, Any]]) -> None:
        """Print present events."""
        if self._form is not Form.TEXT:
            for event in events:
                self.one(event)
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in denied.by_pair(events, width):
            echo(line)

    def one(self, event: dict[str, Any]) -> None:
        """Print an event on a line of its own."""
        match self._form:
            case Form.JSON:
                echo(json.dumps(event, separators=(",", ":")))
            case Form.WIDE:
                echo(denied.wide(event))
            case Form.TEXT:
                echo(denied.line(event))


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
