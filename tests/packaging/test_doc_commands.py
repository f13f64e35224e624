"""Commands in the documents name commands, options and files that there are.

That they do what the page says is seen where they are run: on a real cluster (tests/cluster/test_daemonset.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import typer

from felix_py.cli.main import app
from tests.support.manifests import ROOT
from tests.support.pages import DOCS, commands, quoted

PAGES = ["install.md", "upgrade.md", "troubleshoot.md", "migration.md", "by-hand.md"]
PROMPTS = ("cluster$", "node#")
OURS: Any = typer.main.get_command(app)


def told(page: str) -> Iterator[str]:
    text = (DOCS / page).read_text()
    for prompt in PROMPTS:
        if f"    {prompt} " in text:
            yield from commands(page, prompt)
    for program in ("kubectl", "felix-py"):
        yield from quoted(page, program)


def words(command: str) -> list[list[str]]:
    """The words of each simple command, as a shell takes them apart; here-documents and assignments left out."""
    if "<<" in command or re.match(r"\w+=\$\(", command):
        return []
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            found.append([])
        else:
            found[-1].append(word)
    return [one for one in found if one]


def ours(command: str) -> Iterator[list[str]]:
    """The arguments of each call of felix-py, also of those by kubectl exec."""
    for one in words(command):
        for place, word in enumerate(one):
            if word.rpartition("/")[2] == "felix-py" and (place == 0 or one[place - 1] == "--"):
                yield one[place + 1 :]


def parse(call: list[str]) -> None:
    """Raises an error that says "no such" for a command or an option that there is not."""
    command = OURS.get_command(None, call[0])
    assert command is not None, f"no such command: {call[0]}"
    if len(call) > 1 and "--help" not in call:  # a name alone is in a sentence
        command.make_context(call[0], call[1:])  # does not run it


@pytest.mark.parametrize("page", PAGES)
def test_calls_of_felix_py_are_understood(page: str) -> None:
    for command in told(page):
        for call in ours(command):
            parse(call)


@pytest.mark.parametrize("page", PAGES)
def test_files_of_kubectl_exist(page: str) -> None:
    for command in told(page):
        for one in words(command):
            for before, word in pairwise(one):
                if one[0] == "kubectl" and before in ("-f", "-k") and word.startswith("manifests"):
                    assert (ROOT / word).exists(), command


def test_containers_that_pages_name_exist() -> None:
    text = (ROOT / "manifests" / "felix-py.yaml").read_text() + (ROOT / "manifests" / "cleanup.yaml").read_text()
    for page in PAGES:
        for command in told(page):
            for name in re.findall(r" -c (\S+)", command):
                assert f"name: {name}\n" in text, command


@pytest.mark.parametrize(
    "wrong", ["felix-py status --nosuch", "kubectl exec x -- felix-py nosuch", "felix-py denies -x"]
)
def test_what_is_wrong_would_be_found(wrong: str) -> None:
    (call,) = ours(wrong)
    with pytest.raises(Exception, match=r"(?i)no such"):
        parse(call)


def test_calls_are_found() -> None:
    assert len([call for page in PAGES for command in told(page) for call in ours(command)]) > 15
