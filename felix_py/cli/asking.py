"""Asking the node's agent by HTTP, and printing what it says until nobody reads on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import typer

from felix_py.cli import options
from felix_py.config import ConfigError

if TYPE_CHECKING:
    from http.client import HTTPResponse

CONNECT_SECONDS = 5.0


class Refused(Exception):
    """The agent answered with an error, or not as an agent does."""


class Enough(Exception):
    """Standard output is closed."""


@contextmanager
def ask(
    place: str,
    path: str,
    query: Mapping[str, str],
    patience: float = CONNECT_SECONDS,
    method: str = "GET",
) -> Iterator[HTTPResponse]:
    """GET (or POST) a path. ``patience``: seconds to wait for each part of the answer.

    Raises:
        OSError, http.client.HTTPException: no answer, or the connection broke off.
        Refused: the answer is an error.
    """
    from felix_py.observe.ask import connection as connect

    connection = connect(place, CONNECT_SECONDS)
    try:
        connection.connect()
        connection.sock.settimeout(patience)
        connection.request(method, f"{path}?{urlencode(query)}")
        response = connection.getresponse()
        if response.status != 200:
            words = response.read(1000).decode(errors="replace").strip()
            raise Refused(f"{words or response.reason} (HTTP {response.status})")
        yield response
    finally:
        connection.close()


def as_object(text: bytes) -> dict[str, Any]:
    """Raises Refused for anything but a JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused("it answers something else; is it an agent of this version?")
    return found


@contextmanager
def failing(command: str, place: str) -> Iterator[None]:
    """Turn what :func:`ask` and :func:`as_object` raise into an error of ``felix-py COMMAND``, exit code 1; of an
    invalid ``place``, 2."""
    from http.client import HTTPException

    try:
        yield
    except ConfigError as error:
        options.fail(command, str(error), 2)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        text = f"no agent answers at {place} ({reason}); run it as root on a node with an agent"
        options.fail(command, text, 1)
    except Refused as error:
        options.fail(command, options.printable(str(error)), 1)


def asked(
    command: str,
    place: str,
    path: str,
    query: Mapping[str, str],
    patience: float = CONNECT_SECONDS,
    method: str = "GET",
) -> dict[str, Any]:
    """The object that the agent answers, for ``felix-py COMMAND``; ends with an error where there is none."""
    with failing(command, place), ask(place, path, query, patience, method) as response:
        return as_object(response.read())
    raise AssertionError  # failing() does not return


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Turn Ctrl-C and a closed standard output into typer.Exit(0): neither is a failure."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    except Enough:
        # Otherwise Python reports the closed standard output at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(0) from None


def echo(text: str) -> None:
    """Print a line."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise Enough from None
