"""A bundle: each part for itself, bounded, and complete or not there at all."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from felix_py.diagnose import bundle, node_parts
from felix_py.diagnose.bundle import NotHere, Part
from felix_py.diagnose.redact import Redactor
from felix_py.observe.listener import listen

NOWHERE = Path("/nowhere")
FELIX_PY = str(Path(sys.executable).with_name("felix-py"))


def raising(error: Exception) -> Callable[[], str]:
    def read() -> str:
        raise error

    return read


def made(parts: Iterable[Part], clean: Callable[[str], str] = str) -> tuple[dict[str, str], list[str]]:
    to = io.BytesIO()
    lines = bundle.write(to, "b", parts, clean, lambda _path: None)
    return unpacked(to.getvalue()), lines


def unpacked(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        found = {}
        for member in archive:
            assert member.isfile()
            opened = archive.extractfile(member)
            assert opened is not None
            found[member.name.partition("/")[2]] = opened.read().decode()
        return found


def test_a_part_that_fails_is_a_line_and_the_rest_is_there() -> None:
    clean = Redactor()
    clean.learn(["hunter22"])
    files, lines = made(
        [
            Part("a", lambda: "one\n"),
            Part("b", raising(NotHere("no such tool"))),
            Part("c", raising(OSError(5, "cannot\nread hunter22"))),
            Part("d", raising(RuntimeError())),
            Part("e/f", lambda: "it is hunter22 \udcff"),
        ],
        clean,
    )
    assert files == {"a": "one\n", "e/f": "it is [hidden] ?", "MANIFEST": "\n".join([*lines, ""])}
    assert [line.split()[:2] for line in lines] == [
        ["ok", "a"],
        ["none", "b"],
        ["FAILED", "c"],
        ["FAILED", "d"],
        ["ok", "e/f"],
    ]
    assert "cannot read [hidden]" in lines[2]
    assert lines[3].endswith("RuntimeError")


def test_parts_and_the_whole_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "PART_MOST", 10)
    monkeypatch.setattr(bundle, "MOST", 25)
    parts = [Part(str(number), lambda: "0123456789abcdef", end=number == 1) for number in range(4)]
    files, lines = made(parts)
    assert {name: files[name] for name in "012"} == {"0": "0123456789", "1": "6789abcdef", "2": "01234"}
    assert "3" not in files
    assert [line.split()[0] for line in lines] == ["cut", "cut", "cut", "LEFT"]


# --- a node ------------------------------------------------------------------------------------------


def test_secrets_are_learned_wherever_the_agent_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (run / "bgp").mkdir(parents=True)
    (run / "bgp" / "exabgp.conf").write_text('neighbor x {\n  md5-password "exa-secret";\n}\n')
    (tmp_path / "pw").write_text("file-secret\n")
    config = tmp_path / "bgp.yaml"
    config.write_text("peers:\n- {password: yaml-secret}\n- {passwordFile: pw}\n")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("users:\n- user: {token: kube-secret, client-key-data: a2V5LXNlY3JldA==}\n")
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("account-secret")
    monkeypatch.setattr(node_parts, "SERVICE_ACCOUNT", account)
    monkeypatch.setenv("MY_PASSWORD", "environment-secret")
    log = tmp_path / "root/var/log/pods/kube-system_felix-py-x_uid/agent/0.log"
    log.parent.mkdir(parents=True)
    every = ["exa", "file", "yaml", "kube", "account", "environment"]
    log.write_text("".join(f"said {one}-secret\n" for one in every) + "and a2V5LXNlY3JldA==\n")
    places = node_parts.Places(
        "/nowhere.sock", run, tmp_path / "state", tmp_path / "net.d", config, kubeconfig, tmp_path / "root"
    )
    clean = Redactor()
    node_parts.learn_secrets(clean, places)
    parts = node_parts.parts(places, node_parts.Agent("/nowhere.sock"))
    files, lines = made([p for p in parts if p.path.startswith(("bgp", "logs", "agent"))], clean)
    told = "\n".join([*files.values(), *lines])
    assert [one for one in every if f"{one}-secret" in told] == []
    assert "a2V5" not in told
    assert files["logs/kube-system_felix-py-x_uid/agent/0.log"].count("[hidden]") == 7
    assert "passwordFile: pw" in files["bgp/config.yaml"]
    assert "neighbor x" in files["bgp/exabgp.txt"]
    assert sum("no agent answers" in line for line in lines) >= 6


def test_where_a_running_agent_has_its_files() -> None:
    given = node_parts.Places("/a.sock", Path("/r"), Path("/s"), Path("/c"), None, None)
    status = {"configuration": {"settings": {"runDir": "/other/run", "bgpConfig": "/etc/bgp.yaml"}}}
    found = given.as_the_agent_has_them(status)
    assert (found.run_dir, found.bgp_config, found.state_dir) == (
        Path("/other/run"),
        Path("/etc/bgp.yaml"),
        Path("/s"),
    )
    nonsense: list[object] = [None, 7, {}, {"configuration": []}, {"configuration": {"settings": {"runDir": 7}}}]
    for other in nonsense:
        assert given.as_the_agent_has_them(other) == given


def test_an_agent_that_hangs_is_asked_once() -> None:
    with listen("127.0.0.1:0") as silent:
        port = silent.getsockname()[1]
        agent = node_parts.Agent(f"http://127.0.0.1:{port}", seconds=2)
        assert agent.status() is None
        parts = node_parts.parts(node_parts.Places("", NOWHERE, NOWHERE, NOWHERE, None, None), agent)
        _, lines = made([part for part in parts if part.path.startswith("agent/")])
    failed = [line for line in lines if line.startswith("FAILED")]
    assert len(failed) >= 6
    assert all(" 0.0" in line and "timed out" in line for line in failed)


# --- the command -------------------------------------------------------------------------------------


def command(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    argv = [FELIX_PY, "diags", f"--agent-socket={folder}/no.sock", f"--run-dir={folder}/run", *arguments]
    environment = {**os.environ, **more}
    return subprocess.run(argv, capture_output=True, cwd=folder, env=environment, check=False, timeout=120)


@pytest.mark.root
@pytest.mark.usefixtures("netns")
def test_a_bundle_without_an_agent_and_on_standard_output(tmp_path: Path) -> None:
    done = command(tmp_path, "--output", "-", MY_TOKEN="planted-token", FELIX_PY_LOG_LEVEL="debug")
    assert done.returncode == 0, done.stderr
    files = unpacked(done.stdout)
    assert "planted-token" not in "".join(files.values())
    assert "FELIX_PY_LOG_LEVEL=debug" in files["agent/environment.txt"]
    assert "ipv4/ip_forward = " in files["network/sysctls.txt"]
    assert "lo" in files["network/links.txt"]
    assert "… versions.txt" in done.stderr.decode()
    assert "Traceback" not in "".join(files.values())


LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_disk_that_is_full_leaves_nothing_half(tmp_path: Path) -> None:
    limited = [
        sys.executable,
        "-c",
        LIMITED,
        FELIX_PY,
        "diags",
        f"--agent-socket={tmp_path}/no.sock",
        "--output=out.tar.gz",
    ]
    done = subprocess.run(limited, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 1
    assert "cannot write out.tar.gz: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_none(tmp_path: Path) -> None:
    done = command(tmp_path, "--output=missing/out.tar.gz")
    assert done.returncode == 1
    assert b"cannot write missing/out.tar.gz: No such file" in done.stderr
    done = command(tmp_path, "--agent-socket=ftp://x")
    assert done.returncode == 2


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode == 0, done.stderr
    [made_file] = tmp_path.glob("felix-py-diags-*.tar.gz")
    assert made_file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [made_file]
    assert "MANIFEST" in unpacked(made_file.read_bytes())
