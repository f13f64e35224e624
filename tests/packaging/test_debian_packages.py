"""``scripts/debian-packages`` and ``make lab``, on a machine whose package tools are stand-ins with state.

That real packages leave nothing enabled is seen on a real Debian; here, which of them the script cares for.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "debian-packages"

DPKG_QUERY = """#!/bin/bash
# dpkg-query -W -f FORMAT PACKAGE
[ -e "$STATE/installed/$4" ] && printf 'ii '
"""
DPKG = """#!/bin/bash
# dpkg -L PACKAGE
echo "/lib/systemd/system/$2.service"
echo "/lib/systemd/system/$2@.service"
echo "/usr/share/doc/$2"
"""
APT_GET = """#!/bin/bash
busy=$(cat "$STATE/busy" 2>/dev/null || echo 0)
if [ "$busy" -gt 0 ]; then
  echo $((busy - 1)) >"$STATE/busy"
  echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)' >&2
  exit 100
fi
[ ! -e "$STATE/broken" ] || { echo 'E: Unable to locate package' >&2; exit 100; }
echo "$*" >>"$STATE/calls"
for word in "$@"; do case $word in
  -*|*=*|install|update) ;;
  *) touch "$STATE/installed/$word" "$STATE/enabled/$word.service" ;;
esac; done
"""
SYSTEMCTL = """#!/bin/bash
# systemctl -q disable UNIT
rm -f "$STATE/enabled/$3"
"""


class Machine:
    """Packages that are installed and units that start at boot, as folders of files."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self._bin = folder / "bin"
        for made in (self._bin, self.state / "installed", self.state / "enabled"):
            made.mkdir(parents=True)
        tools = {"dpkg-query": DPKG_QUERY, "dpkg": DPKG, "apt-get": APT_GET, "systemctl": SYSTEMCTL}
        for name, text in {**tools, "kubectl": "#!/bin/sh\n"}.items():
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)

    def run(self, *groups: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": f"{self._bin}:{os.environ['PATH']}", "STATE": str(self.state)}
        return subprocess.run([str(SCRIPT), *groups], env=env, capture_output=True, text=True, check=False)

    def names(self, what: str) -> set[str]:
        return {path.name for path in (self.state / what).iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.root
def test_no_daemon_that_it_brought_starts_at_boot(machine: Machine) -> None:
    """One that was there before is its owner's."""
    for path in ("installed/frr", "enabled/frr.service", "enabled/ssh.service"):
        (machine.state / path).touch()
    done = machine.run("run", "test")
    assert done.returncode == 0, done.stderr
    assert {"bird2", "gobgpd", "frr", "iputils-ping"} <= machine.names("installed")
    assert {"frr.service", "ssh.service"} <= machine.names("enabled")
    assert not {"bird2.service", "gobgpd.service"} & machine.names("enabled")
    assert "procps.service" in machine.names("enabled"), "it is no daemon, and the machine needs it"
    assert machine.run("run", "test").stdout == "", "there is nothing to do any more"


@pytest.mark.root
def test_another_apt_is_waited_for(machine: Machine) -> None:
    (machine.state / "busy").write_text("2")
    done = machine.run("run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Waiting for another apt or dpkg to end") == 1
    assert "DPkg::Lock::Timeout=600 install" in (machine.state / "calls").read_text()


@pytest.mark.root
def test_failure_is_shown(machine: Machine) -> None:
    (machine.state / "broken").touch()
    done = machine.run("run")
    assert done.returncode == 1
    assert "Unable to locate package" in done.stderr


def recipe(target: str) -> str:
    """What make would do in a fresh clone."""
    new = [word for name in ("run", "lab", "dev") for word in ("-W", f"requirements/{name}.txt")]
    argv = ["make", "-n", *new, target]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_lab_needs_no_tools_of_tests() -> None:
    lab = recipe("lab")
    assert "scripts/virtualenv .venv run" in lab
    assert "scripts/virtualenv .venv lab" in lab
    assert "scripts/debian-packages run\n" in lab
    assert "dev" not in lab.replace("debian", "")
    assert "test" not in lab
    assert "scripts/virtualenv .venv dev" in recipe("test")


def test_run_group_has_nothing_that_only_tests_use() -> None:
    """Not the other routers, nor what the lab does without."""
    text = SCRIPT.read_text()
    groups = {
        line.split("]=")[0].strip(" ["): set(line.split('"')[1].split())
        for line in text.splitlines()
        if line.startswith("  [")
    }
    assert not groups["run"] & groups["test"]
    assert {"frr", "gobgpd", "conntrack", "tcpdump"} <= groups["test"]
