"""Requests: a call's environment and network configuration, parsed and validated.

Source: CNI 1.1.0, "Section 1: Network configuration format" and "Section 2: Execution Protocol".
"""

from __future__ import annotations

import enum
import ipaddress
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from felix_py.cni.errors import NOT_JSON, SUPPORTED_VERSIONS, CNIError, Code
from felix_py.cni.protocol import Call
from felix_py.cni.result import DNS, Result
from felix_py.ipam.claims import LeaseKey
from felix_py.layout import FIRST_INTERFACE
from felix_py.records import Lease

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,255}")
"""A container id or a network name. The specification has no limit of length; runtimes use 64 characters."""
_POD_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_UID = re.compile(r"[a-zA-Z0-9-]{0,128}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
OUR_IPAM = ("", "felix-py")


class Command(enum.StrEnum):
    """CNI_COMMAND. The client itself answers VERSION."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"


_SINCE = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}
_NEEDED = {
    Command.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Command.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Command.DEL: ("CNI_CONTAINERID", "CNI_IFNAME"),
    Command.GC: ("CNI_PATH",),
    Command.STATUS: ("CNI_PATH",),
}
_POD_ARGS = {"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"}
_KNOWN_ARGS = {"IgnoreUnknown", "IP"} | _POD_ARGS

_PLUGINS = {"portMappings": "portmap", "bandwidth": "bandwidth"}
"""Capability -> plugin. Our own entry declares those of missing plugins, to refuse pods that need them."""


class Attachment(msgspec.Struct, frozen=True):
    """An entry of ``cni.dev/valid-attachments``."""

    container: str = msgspec.field(name="containerID")
    ifname: str


class IPAMConfig(msgspec.Struct, frozen=True):
    """``ipam``; other members than the type are for the plugin that it names."""

    type: str = ""


class NetworkConfig(msgspec.Struct, frozen=True, rename="camel"):
    """The plugin's configuration, which the runtime derives from the network configuration list.

    ``isDefaultGateway`` (as of the reference plugin bridge): whether the container gets its default route by this
    interface; absent: if it is the first one.
    """

    cni_version: str = ""
    name: str = ""
    is_default_gateway: bool | None = None
    ipam: IPAMConfig = IPAMConfig()
    dns: DNS | None = None
    args: dict[str, Any] | None = None
    runtime_config: dict[str, Any] | None = None
    prev_result: Result | None = None
    valid_attachments: list[Attachment] | None = msgspec.field(default=None, name="cni.dev/valid-attachments")

    @property
    def delegate(self) -> str:
        """The IPAM plugin to run for addresses; empty for our own store."""
        return "" if self.ipam.type in OUR_IPAM else self.ipam.type


class PodName(Struct, frozen=True):
    """The pod of a call; all fields are empty for a container that is no pod's."""

    namespace: str
    name: str
    uid: str


Before = Mapping[LeaseKey, Lease]
"""The leases of a moment."""


class Request(Struct, frozen=True):
    """A valid call. Fields that its command does not need may be empty."""

    command: Command
    container: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    config: NetworkConfig
    call: Call
    before: Before | None = None
    """The leases of when the call was found in the spool; None: it was made just now."""

    @property
    def version(self) -> str:
        """The CNI version that the caller speaks."""
        return self.config.cni_version

    @property
    def first(self) -> bool:
        """Whether the interface is the one whose addresses the runtime reports as the pod's."""
        return self.ifname == FIRST_INTERFACE

    @property
    def default_route(self) -> bool:
        """Whether the container's default route is to be through the interface."""
        asked = self.config.is_default_gateway
        return self.first if asked is None else asked

    def pod(self) -> PodName:
        """The pod of the call, or none; CNIError if the runtime named half of one, or the name is invalid."""
        if not any(name.startswith("K8S_") for name in self.args):
            return PodName("", "", "")
        namespace, name = self.args.get("K8S_POD_NAMESPACE", ""), self.args.get("K8S_POD_NAME", "")
        if not namespace or not name:
            text = "CNI_ARGS of a pod must have K8S_POD_NAMESPACE and K8S_POD_NAME"
            raise CNIError(Code.INVALID_CONFIG, text)
        uid = self.args.get("K8S_POD_UID", "")
        if not _POD_NAME.fullmatch(namespace) or not _POD_NAME.fullmatch(name) or not _UID.fullmatch(uid):
            raise CNIError(Code.ENVIRONMENT, f"CNI_ARGS: {namespace!r}/{name!r} ({uid!r}) cannot be a pod")
        return PodName(namespace, name, uid)

    def requested_addresses(self) -> list[str]:
        """Requested addresses: runtimeConfig.ips, else args.cni.ips, else IP in CNI_ARGS; CNIError if invalid."""
        wanted = (self.config.runtime_config or {}).get("ips")
        if wanted is None:
            wanted = _cni_args(self.config).get("ips")
        if wanted is None:
            wanted = [self.args["IP"]] if self.args.get("IP") else []
        try:
            # With or without a prefix length (CNI conventions, "ips"), which is ignored.
            return [str(ipaddress.ip_interface(text).ip) for text in msgspec.convert(wanted, list[str])]
        except (ValueError, msgspec.ValidationError) as error:
            raise CNIError(Code.INVALID_CONFIG, f"requested addresses {wanted!r}: {error}") from None

    def requested_mac(self) -> str:
        """``runtimeConfig.mac`` (CNI conventions), or empty; CNIError if it is not a unicast MAC."""
        mac = (self.config.runtime_config or {}).get("mac", "")
        if mac and not (isinstance(mac, str) and _MAC.fullmatch(mac) and not int(mac[:2], 16) & 1):
            raise CNIError(Code.INVALID_CONFIG, f"runtimeConfig.mac: {mac!r} is not a unicast MAC address")
        return str(mac)


class _VersionOnly(msgspec.Struct, rename="camel"):
    cni_version: str = ""


def version_of(call: Call) -> str:
    """The CNI version for errors about this call, also if the call is invalid; empty if unreadable."""
    try:
        return msgspec.json.decode(call.stdin, type=_VersionOnly).cni_version
    except NOT_JSON:
        return ""


def parse_request(call: Call) -> Request:
    """Validate a call; raises CNIError with the code of the specification."""
    environment = call.environment
    try:
        command = Command(environment.get("CNI_COMMAND", ""))
    except ValueError:
        raise CNIError(Code.ENVIRONMENT, f"unknown CNI_COMMAND {environment.get('CNI_COMMAND')!r}") from None
    missing = [name for name in _NEEDED[command] if not environment.get(name)]
    if missing:
        raise CNIError(Code.ENVIRONMENT, f"{command} needs the environment variables {', '.join(missing)}")
    container, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if "CNI_CONTAINERID" in _NEEDED[command]:
        _check_attachment(container, ifname)
    config = _parse_del(call) if command is Command.DEL else _parse_config(call.stdin, command)
    try:
        args = _parse_args(environment.get("CNI_ARGS", ""))
    except CNIError:
        if command is not Command.DEL:
            raise
        args = {}
    return Request(command, container, environment.get("CNI_NETNS", ""), ifname, args, config, call)


def _check_attachment(container: str, ifname: str) -> None:
    if not _NAME.fullmatch(container):
        text = "letters, digits, '_', '.' and '-' only, 256 of them at most"
        raise CNIError(Code.ENVIRONMENT, f"CNI_CONTAINERID {container[:300]!r}: {text}")
    if ifname in (".", "..") or len(ifname.encode()) > 15 or any(c in "/:" or c.isspace() for c in ifname):
        raise CNIError(Code.ENVIRONMENT, f"CNI_IFNAME {ifname!r} cannot name an interface")


def _parse_config(stdin: bytes, command: Command) -> NetworkConfig:
    try:
        config = msgspec.json.decode(stdin, type=NetworkConfig)
    except msgspec.ValidationError as error:
        raise CNIError(Code.INVALID_CONFIG, f"network configuration: {error}") from None
    except NOT_JSON as error:
        raise CNIError(Code.DECODING, f"the network configuration is not JSON: {error}") from None
    if config.cni_version not in SUPPORTED_VERSIONS:
        text = f"cniVersion {config.cni_version!r} is not supported"
        supported = f"supported versions: {', '.join(SUPPORTED_VERSIONS)}"
        raise CNIError(Code.INCOMPATIBLE_VERSION, text, supported)
    since = _SINCE.get(command, "")
    if SUPPORTED_VERSIONS.index(config.cni_version) < SUPPORTED_VERSIONS.index(since or "0.3.0"):
        raise CNIError(Code.INCOMPATIBLE_VERSION, f"{command} needs cniVersion {since}, not {config.cni_version}")
    if not _NAME.fullmatch(config.name):
        raise CNIError(Code.INVALID_CONFIG, f"name {config.name!r}: letters, digits, '_', '.' and '-' only")
    if not _is_program(config.delegate):
        raise CNIError(Code.INVALID_CONFIG, f"ipam.type {config.delegate!r} cannot be a plugin's name")
    if command is Command.ADD:
        _check_runtime_config(config)
    if config.prev_result:
        _check_previous(config.prev_result)
    return config


class _Raw(msgspec.Struct):
    ipam: msgspec.Raw = msgspec.Raw(b"{}")


def _parse_del(call: Call) -> NetworkConfig:
    """Parse what a DEL uses: the IPAM plugin. Other errors must not make a pod undeletable.

    Raises:
        CNIError: stdin is no JSON object, or an IPAM plugin is named without CNI_PATH.
    """
    try:
        ipam = msgspec.json.decode(call.stdin, type=_Raw).ipam
    except NOT_JSON as error:
        raise CNIError(Code.DECODING, f"the network configuration is not a JSON object: {error}") from None
    try:
        config = NetworkConfig(version_of(call), ipam=msgspec.json.decode(ipam, type=IPAMConfig))
    except NOT_JSON:
        config = NetworkConfig(version_of(call))  # no ADD succeeds with such a configuration
    if not _is_program(config.delegate):
        return NetworkConfig(config.cni_version)
    if config.delegate and not call.environment.get("CNI_PATH"):
        raise CNIError(Code.ENVIRONMENT, f"DEL needs CNI_PATH for the IPAM plugin {config.delegate}")
    return config


def _is_program(name: str) -> bool:
    return "/" not in name and name not in (".", "..")


def _check_runtime_config(config: NetworkConfig) -> None:
    """Refuse unsupported members of runtimeConfig: none may be ignored."""
    supported = {"ips", "mac"} | ({"ipRanges"} if config.delegate else set())
    for key, value in (config.runtime_config or {}).items():
        if key not in supported and value:
            hint = f"; it is the plugin {_PLUGINS[key]}'s, which is not installed" if key in _PLUGINS else ""
            raise CNIError(Code.UNSUPPORTED_FIELD, f"runtimeConfig.{key} is not supported: {value!r}{hint}")


def _check_previous(result: Result) -> None:
    for entry in result.ips:
        try:
            ipaddress.ip_interface(entry.address)
        except ValueError as error:
            raise CNIError(Code.INVALID_CONFIG, f"prevResult.ips: {error}") from None


def _cni_args(config: NetworkConfig) -> Mapping[str, Any]:
    found = (config.args or {}).get("cni")
    return found if isinstance(found, dict) else {}


def _parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS: ``NAME=value`` pairs separated by semicolons."""
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise CNIError(Code.ENVIRONMENT, f"CNI_ARGS: {pair!r} is not NAME=value")
        args[name] = value
    unknown = sorted(args.keys() - _KNOWN_ARGS)
    if unknown and args.get("IgnoreUnknown", "").lower() not in ("1", "t", "true"):
        text = f"CNI_ARGS: {', '.join(unknown)} not known, and IgnoreUnknown is not set"
        raise CNIError(Code.ENVIRONMENT, text)
    return args
