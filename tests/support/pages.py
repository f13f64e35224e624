"""Commands that the documents tell people to give, taken out of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def commands(page: str, prompt: str, heading: str = "") -> list[str]:
    """The commands behind ``prompt`` ("cluster$") of a page in ``docs``; only below a heading, if one is given.

    Raises:
        AssertionError: there is no such heading, or no command.
    """
    text = (DOCS / page).read_text()
    if heading:
        text = section(text, heading)
    found = list(_commands(_lines(text), prompt))
    assert found, f"docs/{page} has no command at {prompt} under {heading!r}"
    return found


def _commands(lines: Iterator[str], prompt: str) -> Iterator[str]:
    """The commands behind a prompt, without comments; with their here-documents."""
    for line in lines:
        if not line.startswith(f"{prompt} "):
            continue
        command = re.sub(r"\s+#\s.*$", "", line.removeprefix(prompt).strip())
        if end := re.search(r"<<'?(\w+)'?$", command):
            for text in lines:
                command += f"\n{text}"
                if text == end[1]:
                    break
        yield command


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    parts = re.split(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert heading in named, f"no heading {heading!r}; there are {list(named)}"
    return named[heading]


def _lines(text: str) -> Iterator[str]:
    """Lines of indented code, those that end in a backslash joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("    "):
            yield line.strip()


def quoted(page: str, program: str) -> list[str]:
    """Commands of a program in code spans, as tables have them."""
    text = (DOCS / page).read_text()
    return [span for span in re.findall(r"`([^`\n]+)`", text) if span.startswith(f"{program} ")]
