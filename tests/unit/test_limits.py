"""Every boundary has a limit: what tools, plugins and callers say is bounded before anybody keeps it."""

from __future__ import annotations

import asyncio
import json
import sys
import time

import pytest

from felix_py.cni.errors import CNIError, Code
from felix_py.cni.protocol import Call, ProtocolError, parse_call
from felix_py.cni.talk import MOST, talk
from felix_py.cni.types import parse_request
from felix_py.dataplane import processes
from felix_py.dataplane.backend import ToolError, run

LOUD = "import sys; sys.stderr.write('iptables-restore: bad rule ' + 'x' * 24_000_000); sys.exit(1)"


def test_a_tools_complaint_is_cut_off() -> None:
    with pytest.raises(ToolError) as caught:
        run([sys.executable, "-c", LOUD])
    assert str(caught.value).startswith("iptables-restore: bad rule x")
    assert len(str(caught.value)) < 1100


def test_a_tools_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MOST_OUTPUT", 1 << 20)
    with pytest.raises(ToolError, match="printed more than 1 MB"):
        run([sys.executable, "-c", "while True: print('x' * 100000)"])
    assert len(run([sys.executable, "-c", "print('x' * 1000000)"])) == 1_000_001


def test_a_tool_gets_all_of_its_input_whatever_it_prints_meanwhile() -> None:
    rules = "".join(f"-A FELIX-{n}\n" for n in range(200_000))
    assert run(["/bin/cat"], rules) == rules
    assert run(["/bin/true"], rules) == ""


def test_a_tool_that_hangs_is_killed_with_its_children() -> None:
    started = time.monotonic()
    with pytest.raises(ToolError, match="timed out after 2 seconds"):
        run(["/bin/sh", "-c", "sleep 1000 & sleep 1000"], timeout=2.0)
    assert time.monotonic() - started < 100


async def test_a_plugins_output_is_bounded() -> None:
    pipe = asyncio.subprocess.PIPE
    program = "import sys; sys.stdout.write('o' * 5_000_000); sys.stderr.write('e' * 5_000_000)"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=pipe, stdout=pipe, stderr=pipe
    )
    output, complaint = await talk(process, b"x" * 3_000_000, 60)
    assert (len(output), len(complaint)) == (MOST, MOST)


def call(container: str, command: str = "ADD", name: str = "felix-py") -> Call:
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    return Call(environment, json.dumps({"cniVersion": "1.0.0", "name": name}).encode())


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_a_container_has_a_name_of_some_length(command: str) -> None:
    assert parse_request(call("c" * 256, "DEL")).container == "c" * 256
    with pytest.raises(CNIError, match="256 of them at most") as caught:
        parse_request(call("c" * 100_000, command))
    assert caught.value.code == Code.ENVIRONMENT
    assert len(caught.value.message) < 500


def test_an_error_is_bounded_whatever_is_in_it() -> None:
    error = CNIError(Code.DELEGATE, "m" * 1_000_000, "d" * 1_000_000)
    assert len(error.encode("1.0.0")) < 11_000
    with pytest.raises(CNIError) as caught:
        parse_request(call("c1", name="n" * 100_000))
    assert len(caught.value.encode("1.0.0")) < 3000


def test_a_call_is_bounded() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        parse_call(b"felix-py-cni/1 10 99999999\n")
    with pytest.raises(ProtocolError, match="too large"):
        parse_call(b"felix-py-cni/1 1000000 10\n")
