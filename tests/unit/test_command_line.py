"""How ``felix-py`` ends when it is called wrongly: a message on stderr, the exit code, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


# Another user who may read everything: Python itself may be in root's home.
NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)


def felix(*words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*before, FELIX_PY, *words]
    done = subprocess.run(
        argv, env={"PATH": "/usr/sbin:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explode"], "No such command 'explode'"),
        (["agnet"], "Did you mean 'agent'?"),
        (["agent", "--no-such"], "No such option: --no-such"),
        (["lab", "up", "--nodes", "0"], "greater than or equal to 1"),
        (["lab", "up", "--ipv6", "--dual-stack"], "exclude each other"),
        (["lab", "up", "--backend", "ebpf"], "must be auto, legacy or nft"),
        (["lab", "status", "--name", "../etc"], "is no name for a lab"),
        (["lab", "exec", "tor"], "Missing argument"),
        (["lab", "matrix", "--protocol", "SCTP"], "must be TCP or UDP"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_call(words: list[str], message: str) -> None:
    done = felix(*words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("words", [[], ["lab"]], ids=["felix-py", "lab"])
def test_no_command_shows_the_commands(words: list[str]) -> None:
    done = felix(*words)
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


@pytest.mark.root
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--mark-mask", "many", "not a number"),
        ("--mark-mask", "0xffffffff", "kube-proxy's bits"),
        ("--mark-mask", "0xff0000", "16 adjacent bits"),
        ("--backend", "ebpf", "must be auto, legacy or nft"),
        ("--cluster-cidr", "10.0.0.1/8", "write it as 10.0.0.0/8"),
        ("--cluster-cidr", "::/0", "everything"),
        ("--mtu", "60", "68"),
        ("--chained-plugin", "../sh", "name of a program"),
        ("--deny-log-group", "65536", "65535"),
        ("--deny-log-rate", "0", "greater than or equal to 1"),
    ],
)
def test_wrong_setting_of_the_agent(option: str, value: str, message: str) -> None:
    done = felix("agent", option, value)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert option in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("words", [["agent"], ["cleanup"], ["cleanup", "--dry-run"], ["lab", "up"]], ids=" ".join)
def test_without_root(words: list[str]) -> None:
    done = felix(*words, before=NOBODY)
    assert done.returncode == 1
    assert "root" in done.stderr


def test_lab_that_is_not_up(tmp_path: Path) -> None:
    for words in (
        ["status"],
        ["exec", "tor", "--", "true"],
        ["matrix"],
        ["logs", "tor"],
        ["kubectl", "--", "get"],
    ):
        done = felix("lab", words[0], "--state-root", str(tmp_path), *words[1:])
        assert (done.returncode, "is not up" in done.stderr) == (1, True), done
    assert felix("lab", "down", "--state-root", str(tmp_path), "--name", "nosuchlab").returncode == 0
