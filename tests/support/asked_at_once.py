"""What ``felix-py`` says to several calls, by another interpreter, which loads its modules once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_ASK = """
import json, os, subprocess, sys, tempfile
from importlib.util import find_spec
from felix_py.cli import main
if find_spec("lab"):
    import lab.cli.main
found = []
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        if not (child := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv[:] = ["felix-py", *words]
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), err.seek(0)
        found.append((code, out.read(), err.read()))
print(json.dumps(found))
"""

Answers = dict[tuple[str, ...], subprocess.CompletedProcess[str]]


def ask(python: Sequence[str | Path], asked: Sequence[Sequence[str]], **environment: str) -> Answers:
    """What the command line says to each of these words. ``python``: what runs it."""
    done = subprocess.run(
        [*python, "-c", _ASK, json.dumps(asked)],
        env={**os.environ, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return {
        tuple(words): subprocess.CompletedProcess(words, code, out, err)
        for words, (code, out, err) in zip(asked, json.loads(done.stdout), strict=True)
    }
