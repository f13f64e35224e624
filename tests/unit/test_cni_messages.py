"""CNI calls and results as texts: versions, required variables, error codes, encodings."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from felix_py.cni.conflist import FILE_NAME, conflist, install_client, install_conflist, is_delegated
from felix_py.cni.errors import SUPPORTED_VERSIONS, CNIError, Code
from felix_py.cni.protocol import Answer, Call, ProtocolError, parse_call, read_call
from felix_py.cni.result import DNS, Interface, IPConfig, Result, RouteConfig
from felix_py.cni.types import Command, PodName, Request, parse_request, version_of

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "0123abc",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=1-2;FOO=bar",
}


def parse(config: dict[str, Any] | None = None, **environment: str | None) -> Request:
    merged = {**ENVIRONMENT, **environment}
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "felix-py", "type": "felix-py-cni"} | (config or {}))
    return parse_request(Call({k: v for k, v in merged.items() if v is not None}, stdin.encode()))


def failure(config: dict[str, Any] | None = None, /, **environment: str | None) -> CNIError:
    with pytest.raises(CNIError) as caught:
        parse(config, **environment)
    return caught.value


def test_a_valid_call() -> None:
    request = parse()
    assert request.command is Command.ADD
    assert (request.container, request.netns, request.ifname) == ("0123abc", "/run/netns/x", "eth0")
    assert (request.pod().namespace, request.pod().name, request.pod().uid) == ("ns", "web-0", "1-2")
    assert request.config.delegate == ""
    assert request.requested_addresses() == []
    assert request.requested_mac() == ""


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME"]),
        ("GC", ["CNI_PATH"]),
        ("STATUS", ["CNI_PATH"]),
    ],
)
def test_every_missing_variable_is_named(command: str, missing: list[str]) -> None:
    nothing = {name: None for name in ENVIRONMENT if name != "CNI_COMMAND"}
    error = failure(CNI_COMMAND=command, **nothing)
    assert error.code == Code.ENVIRONMENT
    assert error.message == f"{command} needs the environment variables {', '.join(missing)}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_COMMAND", "FROB"),
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_CONTAINERID", "x\n"),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "sixteen-letters!"),
        ("CNI_IFNAME", "ääääääää"),
        ("CNI_ARGS", "novalue"),
        ("CNI_ARGS", "=x"),
        ("CNI_ARGS", "FOO=bar"),
        ("CNI_ARGS", "IgnoreUnknown=0;FOO=bar"),
    ],
)
def test_variables_that_cannot_be(name: str, value: str) -> None:
    error = failure(**{name: value})
    assert error.code == Code.ENVIRONMENT
    assert name in error.message


@pytest.mark.parametrize(
    "args",
    [
        "K8S_POD_NAMESPACE=..;K8S_POD_NAME=x",
        "K8S_POD_NAMESPACE=x;K8S_POD_NAME=A b",
        "K8S_POD_NAMESPACE=x;K8S_POD_NAME=x\n",
    ],
)
def test_names_that_no_pod_can_have(args: str) -> None:
    with pytest.raises(CNIError, match="cannot be a pod"):
        parse(CNI_ARGS=args).pod()


@pytest.mark.parametrize(
    "args",
    [
        "K8S_POD_NAME=web",
        "K8S_POD_NAMESPACE=ns",
        "K8S_POD_NAMESPACE=;K8S_POD_NAME=x",
        "K8S_POD_NAMESPACE=;K8S_POD_NAME=",
        "K8S_POD_UID=u",
        "IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=c",
    ],
)
def test_half_a_pods_name_is_none_and_no_container_without_pod(args: str) -> None:
    request = parse(CNI_ARGS=args)
    with pytest.raises(CNIError, match="must have K8S_POD_NAMESPACE and K8S_POD_NAME") as caught:
        request.pod()
    assert caught.value.code == Code.INVALID_CONFIG


@pytest.mark.parametrize("args", ["", "IP=10.0.0.1", "IgnoreUnknown=1;FOO=bar"])
def test_a_container_that_is_no_pods(args: str) -> None:
    assert parse(CNI_ARGS=args).pod() == PodName("", "", "")


@pytest.mark.parametrize(
    ("ifname", "asked", "has"),
    [("eth0", None, True), ("net1", None, False), ("eth0", False, False), ("net1", True, True)],
)
def test_which_interface_has_the_default_route(ifname: str, asked: bool | None, has: bool) -> None:
    assert parse({"isDefaultGateway": asked}, CNI_IFNAME=ifname).default_route is has


@pytest.mark.parametrize(
    ("command", "since"),
    [("ADD", "0.3.0"), ("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")],
)
@pytest.mark.parametrize("version", [*SUPPORTED_VERSIONS, "0.2.0", "1.2.0", "", "x"])
def test_commands_exist_since_their_version(command: str, since: str, version: str) -> None:
    known = version in SUPPORTED_VERSIONS
    if known and SUPPORTED_VERSIONS.index(version) >= SUPPORTED_VERSIONS.index(since):
        assert parse({"cniVersion": version}, CNI_COMMAND=command).version == version
    else:
        assert failure({"cniVersion": version}, CNI_COMMAND=command).code == Code.INCOMPATIBLE_VERSION


def test_addresses_may_be_requested_in_three_ways() -> None:
    both = {"runtimeConfig": {"ips": ["10.0.0.5/24", "fd00::5"]}, "args": {"cni": {"ips": ["10.0.0.6"]}}}
    assert parse(both).requested_addresses() == ["10.0.0.5", "fd00::5"]
    assert parse({"args": {"cni": {"ips": ["10.0.0.6"]}}}).requested_addresses() == ["10.0.0.6"]
    assert parse(CNI_ARGS="IP=10.0.0.7").requested_addresses() == ["10.0.0.7"]
    for wrong in ("x", ["x"], [7], {"a": 1}):
        with pytest.raises(CNIError, match="requested addresses"):
            parse({"runtimeConfig": {"ips": wrong}}).requested_addresses()


@pytest.mark.parametrize("mac", ["x", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "02:00:00:00:00", 7])
def test_macs_that_no_interface_can_have(mac: object) -> None:
    with pytest.raises(CNIError, match="not a unicast MAC"):
        parse({"runtimeConfig": {"mac": mac}}).requested_mac()


def test_what_the_runtime_asks_for_is_done_or_refused() -> None:
    ranges = {"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/24"}]]}}
    assert failure(ranges).code == Code.UNSUPPORTED_FIELD
    assert failure({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}).code == Code.UNSUPPORTED_FIELD
    assert parse({"runtimeConfig": {"portMappings": []}}).config.name == "felix-py"
    assert parse({**ranges, "ipam": {"type": "host-local"}}).config.delegate == "host-local"
    parse(ranges, CNI_COMMAND="DEL")  # cleaning up is never refused for that


def test_the_version_of_an_error_is_the_callers() -> None:
    assert version_of(Call({}, b'{"cniVersion": "0.4.0", "name": 7}')) == "0.4.0"
    assert version_of(Call({}, b"nonsense")) == ""
    error = CNIError(Code.TRY_AGAIN, 'said "no"', "and why")
    assert json.loads(error.encode("0.4.0")) == {
        "cniVersion": "0.4.0",
        "code": 11,
        "msg": 'said "no"',
        "details": "and why",
    }
    assert json.loads(error.encode("9.9.9"))["cniVersion"] == "1.0.0"


FULL = Result(
    interfaces=[
        Interface(name="felix1", mac="ee:ee:ee:ee:ee:ee", mtu=1400),
        Interface(name="eth0", sandbox="/x"),
    ],
    ips=[IPConfig("10.0.0.5/32", "169.254.1.1", 1), IPConfig("fd00::5/128", "fe80::1", 1)],
    routes=[RouteConfig("0.0.0.0/0", "169.254.1.1", mtu=1400, priority=7)],
    dns=DNS(nameservers=["10.0.0.10"]),
)


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
def test_results_are_written_for_the_callers_version(version: str) -> None:
    old, newest = version.startswith("0."), version == "1.1.0"
    mtu = {"mtu": 1400} if newest else {}
    assert json.loads(FULL.encode(version)) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "felix1", "mac": "ee:ee:ee:ee:ee:ee", **mtu},
            {"name": "eth0", "sandbox": "/x"},
        ],
        "ips": [
            {
                "address": "10.0.0.5/32",
                "gateway": "169.254.1.1",
                "interface": 1,
                **({"version": "4"} if old else {}),
            },
            {"address": "fd00::5/128", "gateway": "fe80::1", "interface": 1, **({"version": "6"} if old else {})},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", **({"mtu": 1400, "priority": 7} if newest else {})}],
        "dns": {"nameservers": ["10.0.0.10"]},
    }


def test_a_previous_result_is_passed_on_whole() -> None:
    previous = json.loads(FULL.encode("1.1.0"))
    request = parse({"prevResult": previous})
    assert request.config.prev_result is not None
    assert json.loads(request.config.prev_result.encode("1.1.0")) == previous


# --- framing -----------------------------------------------------------------------------------------


async def read(*pieces: bytes) -> Call:
    """Each piece is sent once the reader waits for more; then the sender goes away."""
    ours, client = socket.socketpair()
    with ours, client:
        ours.setblocking(False)
        reading = asyncio.create_task(read_call(ours))
        for piece in pieces:
            client.send(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        client.close()
        return await reading


FRAME = b"felix-py-cni/1 23 5\nCNI_A=1\0CNI_B=x=y\0CNI_\0{\n\0}\n"
CALL = Call({"CNI_A": "1", "CNI_B": "x=y", "CNI_": ""}, b"{\n\0}\n")


def test_frames() -> None:
    assert parse_call(FRAME) == CALL
    assert Answer(1, b"{}").encode() == b"1 2\n{}"
    with pytest.raises(ProtocolError):
        parse_call(FRAME + b"more")


@pytest.mark.parametrize("cut", range(len(FRAME) + 1))
async def test_a_frame_arrives_in_pieces(cut: int) -> None:
    assert await read(FRAME[:cut], FRAME[cut:]) == CALL
    assert await read(FRAME[:cut], FRAME[cut:] + b"more") == CALL  # nothing more is asked for
    if cut < len(FRAME):
        with pytest.raises(ProtocolError, match=f"the connection ended after {cut} bytes"):
            await read(FRAME[:cut])


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"felix-py-cni/2 1 1\n",
        b"x" * 100,
        b"felix-py-cni/1 99999999 1\n",
        b"felix-py-cni/1 1 1" + b"0" * 99,
    ],
)
async def test_what_is_no_frame_is_refused_before_its_end(data: bytes) -> None:
    ours, client = socket.socketpair()
    with ours, client:  # which stays open
        ours.setblocking(False)
        client.send(data)
        with pytest.raises(ProtocolError, match=r"not a call of felix-py-cni|too large"):
            await read_call(ours)


# --- configuration list ------------------------------------------------------------------------------


def test_conflist() -> None:
    written = json.loads(conflist(["portmap", "bandwidth", "tuning"]))
    assert (written["cniVersion"], written["name"]) == ("1.0.0", "felix-py")
    assert "cniVersions" not in written
    assert written["plugins"] == [
        {"type": "felix-py-cni", "capabilities": {"ips": True, "mac": True}},
        {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "tuning"},
    ]


def test_a_list_for_runtimes_of_two_ages() -> None:
    """libcni takes the highest of cniVersions that it knows; one that does not know the key takes cniVersion."""
    written = json.loads(conflist(versions=("1.0.0", "1.1.0")))
    assert (written["cniVersion"], written["cniVersions"]) == ("1.0.0", ["1.0.0", "1.1.0"])


def test_what_an_absent_plugin_would_do_is_asked_of_us_and_refused() -> None:
    written = json.loads(conflist(["portmap", "tuning"], absent=["portmap"]))
    assert [plugin["type"] for plugin in written["plugins"]] == ["felix-py-cni", "tuning"]
    assert written["plugins"][0]["capabilities"] == {"ips": True, "mac": True, "portMappings": True}
    error = failure({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}})
    assert error.code == Code.UNSUPPORTED_FIELD
    assert "portmap" in error.message


@pytest.mark.parametrize(
    ("ipam", "delegated"),
    [(None, False), ({}, False), ({"type": "felix-py"}, False), ({"type": "host-local"}, True)],
)
def test_whether_addresses_come_from_elsewhere(tmp_path: Path, ipam: object, delegated: bool) -> None:
    ours = {"type": "felix-py-cni"} | ({"ipam": ipam} if ipam is not None else {})
    (tmp_path / "05-other.conflist").write_text(
        '{"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}'
    )
    (tmp_path / "06-broken.conflist").write_text("{")
    (tmp_path / "07-ours.conflist").write_text(json.dumps({"plugins": [ours]}))
    (tmp_path / "10-felix-py.conflist").write_text(conflist())
    assert is_delegated(tmp_path) is delegated
    assert not is_delegated(tmp_path / "none")


DEL = {"CNI_COMMAND": "DEL", "CNI_PATH": None, "CNI_NETNS": None}


@pytest.mark.parametrize(
    "wrong",
    [
        {"cniVersion": "9.9.9"},
        {"cniVersion": 7},
        {"name": ""},
        {"name": 7},
        {"dns": "x"},
        {"args": 1},
        {"runtimeConfig": []},
        {"prevResult": {"ips": [{"address": "x"}]}},
        {"prevResult": "x"},
        {"ipam": "x"},
        {"ipam": {"type": "../evil"}},
        {"ipam": None},
        {"cni.dev/valid-attachments": "x"},
    ],
)
def test_a_del_uses_nothing_that_it_does_not_need(wrong: dict[str, Any]) -> None:
    request = parse(wrong, **DEL, CNI_ARGS="nonsense;;=")
    assert (request.container, request.ifname, request.config.delegate) == ("0123abc", "eth0", "")


def test_a_del_needs_to_know_where_the_ipam_plugin_is() -> None:
    delegated = {"ipam": {"type": "host-local"}, "cniVersion": "9.9.9"}
    assert parse(delegated, CNI_COMMAND="DEL").config.delegate == "host-local"
    assert failure(delegated, **DEL).code == Code.ENVIRONMENT


def test_installing_the_list_twice_changes_nothing(tmp_path: Any) -> None:
    folder = tmp_path / "net.d"
    assert install_conflist(folder, conflist())
    assert not install_conflist(folder, conflist())
    assert install_conflist(folder, conflist(["portmap"]))
    assert [entry.name for entry in folder.iterdir()] == [FILE_NAME]
    assert (folder / FILE_NAME).stat().st_mode & 0o777 == 0o644


def test_installing_a_client_that_was_not_built(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError, match="not built"):
        install_client(tmp_path, tmp_path / "cni.sock", tmp_path / "no-such")
    assert list(tmp_path.iterdir()) == []
