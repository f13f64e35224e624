"""``felix-py lab``: what it says, what it leaves, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.namespaces import NETNS_DIR
from tests.support.asked_at_once import ask
from tests.support.isolate import new_netns
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


def felix(*argv: str, folder: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``felix-py lab …`` as people do."""
    done = subprocess.run(
        [FELIX_PY, "lab", *argv],
        env={**os.environ, "FELIX_PY_LAB_STATE_ROOT": str(folder), **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def belongings(name: str, folder: Path) -> list[str]:
    """Everything on this machine that belongs to a lab: processes, namespaces, mounts, files."""
    found = [str(path) for path in NETNS_DIR.glob(f"felix-{name}-*")]
    found += [str(path) for path in folder.glob("*")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"felix-{name}-" in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def programs(name: str, folder: Path) -> object:
    """All programs of a lab with their process ids and deaths."""
    return json.loads(felix("status", "--name", name, "--no-verify", "-o", "json", folder=folder).stdout)[
        "programs"
    ]


@pytest.mark.started
def test_a_lab_from_up_to_down(folder: Path) -> None:
    """IPv6 only, one node: what the other tests do not have."""
    up = felix("up", "--ipv6", "--nodes", "1", "--name", "one", folder=folder)
    assert "1 node, IPv6, backend auto" in up.stdout
    commands = re.findall(r"^  felix-py lab (.*)$", up.stdout, re.MULTILINE)
    assert len(commands) == 4
    for command in commands[:3]:
        assert felix(*command.split(), folder=folder).stdout
    assert json.loads(felix("matrix", "--name", "one", "-o", "json", folder=folder).stdout)
    status = json.loads(felix("status", "--name", "one", "-o", "json", folder=folder).stdout)
    assert status["healthy"]
    assert status["sessions"] == {"node1 IPv6": "Established"}

    again = felix("up", "--ipv6", "--nodes", "1", "--name", "one", folder=folder)
    assert "is up already" in again.stdout
    assert programs("one", folder) == status["programs"]

    again = felix("up", "--name", "one", folder=folder)
    assert "is up already: 1 node, IPv6" in again.stdout
    for shape in (["--dual-stack"], ["--nodes", "2"], ["--backend", "legacy"]):
        other = felix("up", *shape, "--name", "one", folder=folder, check=False)
        assert other.returncode == 1
        assert "is there already with 1 node, IPv6" in other.stderr
    assert programs("one", folder) == status["programs"]

    felix("down", "--name", "one", folder=folder)
    assert not belongings("one", folder)
    assert "there is no lab" in felix("down", "--name", "one", folder=folder).stdout


def test_second_up_at_the_same_time_is_refused(folder: Path) -> None:
    env = {**os.environ, "FELIX_PY_LAB_STATE_ROOT": str(folder)}
    argv = [FELIX_PY, "lab", "up", "--name", "two", "--nodes", "1", "--no-pods"]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        eventually(lambda: (folder / "two" / "lab.json").exists(), 20)
        first.send_signal(signal.SIGSTOP)  # else it may be done before the others ask
        try:
            second = felix("up", "--name", "two", folder=folder, check=False)
            down = felix("down", "--name", "two", folder=folder, check=False)
        finally:
            first.send_signal(signal.SIGCONT)
        words = first.communicate(timeout=60)[1].decode()
    assert first.returncode == 0, words
    for refused in (second, down):
        assert refused.returncode == 1
        assert "another felix-py is bringing lab 'two' up or down just now" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
@pytest.mark.parametrize("moment", [0.0, 0.7, 2.0])
def test_up_that_is_interrupted_leaves_nothing_that_down_does_not_remove(
    folder: Path, number: signal.Signals, moment: float
) -> None:
    env = {**os.environ, "FELIX_PY_LAB_STATE_ROOT": str(folder)}
    with subprocess.Popen(
        [FELIX_PY, "lab", "up", "--name", "three"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        eventually(lambda: (folder / "three" / "lab.json").exists(), 20)
        time.sleep(moment)  # at different depths of the work
        first.send_signal(number)
    if number is signal.SIGINT:
        assert first.returncode == 130
        assert not belongings("three", folder)
    felix("down", "--name", "three", folder=folder)
    assert not belongings("three", folder)


def test_missing_things_are_named(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    done = felix("up", "--name", "six", folder=folder, check=False, PATH=str(empty))
    assert done.returncode == 1
    assert "apt-get install bird2 iproute2 ipset iptables util-linux" in done.stderr
    assert not folder.exists()


def test_missing_kernel_feature_is_named(folder: Path, tmp_path: Path) -> None:
    """A kernel without hash:net,iface, as its ipset would say it."""
    fake = tmp_path / "ipset"
    fake.write_text(
        "#!/bin/sh\ncase \"$*\" in *iface*) echo 'Kernel error: module not found' >&2; exit 1;; esac\n"
    )
    fake.chmod(0o755)
    done = felix("up", "--name", "seven", folder=folder, check=False, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "ip_set_hash_netiface: source check: Kernel error: module not found" in done.stderr
    assert not folder.exists()


def test_without_root_it_says_so(folder: Path) -> None:
    """In one sentence, also where root has a lab whose folder nobody else may read."""
    (folder / "lab").mkdir(parents=True, mode=0o700)
    # It may read: a virtual environment in root's home is closed to others.
    rights = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    python = ["setpriv", "--reuid=65534", "--clear-groups", *rights, sys.executable]
    calls = (
        "up",
        "down",
        "down --all",
        "status",
        "matrix",
        "logs node1",
        "kubectl get pods",
        "exec node1 -- true",
        "explain a/b c/d",
        "denies",
        "verify",
        "plan -f /",
    )
    answers = ask(python, [["lab", *call.split()] for call in calls], FELIX_PY_LAB_STATE_ROOT=str(folder))
    for words, done in answers.items():
        assert done.returncode == 1, words
        assert done.stdout == ""
        assert re.fullmatch(r"felix-py lab: .* takes root: run it with sudo\n", done.stderr), (words, done.stderr)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["up", "--name", "UPPER"], "'UPPER' is no name for a lab"),
        (["up", "--backend", "ebpf"], "--backend ebpf: must be auto, legacy or nft"),
        (["up", "--ipv6", "--dual-stack"], "exclude each other"),
        (["matrix", "--protocol", "icmp"], "must be TCP or UDP"),
    ],
)
def test_wrong_calls(folder: Path, argv: list[str], words: str) -> None:
    done = felix(*argv, folder=folder, check=False)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    "argv", [["status"], ["kubectl", "get", "pods"], ["exec", "tor", "--", "true"], ["matrix"]]
)
def test_without_a_lab(folder: Path, argv: list[str]) -> None:
    done = felix(*argv, folder=folder, check=False)
    assert done.returncode == 1
    assert "is not up" in done.stderr


def test_lab_changes_nothing_outside_its_namespaces(folder: Path) -> None:
    folders = ("/etc/cni/net.d", "/opt/cni", "/var/lib/felix-py", "/etc/felix-py", "/run/felix-py", "/run/bird")
    commands = (["ip", "-json", "address"], ["ip", "rule"], ["iptables-nft-save"], ["ipset", "save"])

    def state() -> list[str]:
        outputs = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in commands]
        listings = [str(sorted(os.listdir(path))) if Path(path).is_dir() else "" for path in folders]
        return [*outputs, *listings, os.readlink("/etc/alternatives/iptables")]

    with new_netns():
        before = state()
        felix("up", "--name", "nine", "--nodes", "1", "--backend", "legacy", folder=folder)
        during = state()
        felix("down", "--name", "nine", folder=folder)
        assert during == before
        assert state() == before
