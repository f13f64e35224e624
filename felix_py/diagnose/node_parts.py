"""What ``felix-py diags`` collects of a node, and the secrets that it must not tell."""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

import msgspec
import yaml

from felix_py.dataplane.backend import ToolError, command, has_legacy_tables, run
from felix_py.datastore.access import SERVICE_ACCOUNT
from felix_py.diagnose.bundle import NotHere, Part
from felix_py.diagnose.redact import Redactor, is_sensitive, secrets_of
from felix_py.ipam.beside import read_leases
from felix_py.observe import ask
from felix_py.records import Backend
from policy.model import Family

_SECONDS = 20.0
"""Time limit of each tool and of each answer of the agent."""

_ANSWER_MOST = 16 << 20
_FILE_MOST = 16 << 20
_LOG_TAIL = 1 << 20
_LOG_FILES = 20

_SYSCTLS = (
    "ipv4/ip_forward",
    "ipv4/conf/*/forwarding",
    "ipv4/conf/*/rp_filter",
    "ipv4/conf/*/proxy_arp",
    "ipv4/conf/*/arp_ignore",
    "ipv4/conf/*/accept_local",
    "ipv4/conf/*/route_localnet",
    "ipv4/conf/*/send_redirects",
    "ipv4/neigh/default/gc_thresh*",
    "ipv6/conf/*/disable_ipv6",
    "ipv6/conf/*/forwarding",
    "ipv6/conf/*/accept_ra",
    "ipv6/conf/*/proxy_ndp",
    "ipv6/neigh/default/gc_thresh*",
    "netfilter/nf_conntrack_*",
    "bridge/bridge-nf-call-*",
    "core/somaxconn",
)

_PROC = (
    "loadavg",
    "meminfo",
    "uptime",
    "modules",
    "net/ip_tables_names",
    "net/ip6_tables_names",
    "net/softnet_stat",
    "net/snmp",
    "net/netstat",
    "net/sockstat",
    "pressure/cpu",
    "pressure/memory",
)

_COMMANDS = {
    "network/links": "ip -d -s link",
    "network/addresses": "ip address",
    "network/rules-ipv4": "ip -4 rule",
    "network/rules-ipv6": "ip -6 rule",
    "network/routes-ipv4": "ip -4 route show table all",
    "network/routes-ipv6": "ip -6 route show table all",
    "network/neighbours": "ip neighbour",
}

_DUMPS = {
    "network/links": ("get_links", {}),
    "network/addresses": ("get_addr", {}),
    "network/rules-ipv4": ("get_rules", {"family": 2}),
    "network/rules-ipv6": ("get_rules", {"family": 10}),
    "network/routes-ipv4": ("get_routes", {"family": 2}),
    "network/routes-ipv6": ("get_routes", {"family": 10}),
    "network/neighbours": ("get_neighbours", {}),
}
"""The same by netlink, where iproute2 is not installed."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the node's files are, and its agent's socket. ``root``: before the paths of /proc and /var/log."""

    agent_socket: str
    run_dir: Path
    state_dir: Path
    cni_conf_dir: Path
    bgp_config: Path | None
    kubeconfig: Path | None
    root: Path = Path("/")

    def as_the_agent_has_them(self, status: object) -> Places:
        """With the folders that an agent's ``/status`` names in place of the defaults."""
        try:
            settings = msgspec.convert(status, _Status).configuration.settings
        except msgspec.ValidationError:
            return self
        given = {
            name: Path(value)
            for name, value in msgspec.structs.asdict(settings).items()
            if isinstance(value, str) and value.startswith("/")
        }
        return Places(**{field: given.get(field, getattr(self, field)) for field in self.__slots__})


class _Settings(msgspec.Struct, rename="camel"):
    run_dir: str | None = None
    state_dir: str | None = None
    cni_conf_dir: str | None = None
    bgp_config: str | None = None
    kubeconfig: str | None = None


class _Configuration(msgspec.Struct):
    settings: _Settings


class _Status(msgspec.Struct):
    configuration: _Configuration


class Agent:
    """The node's agent, which may be dead, or hang: who does not answer once is not asked again."""

    def __init__(self, place: str, seconds: float = _SECONDS) -> None:
        """Raises ConfigError for a place that is none."""
        ask.check(place)
        self._place = place
        self._seconds = seconds
        self._silent = ""

    def get(self, path: str) -> str:
        """The body, whatever the status (readiness says 503 and why). Raises OSError if nobody answers."""
        if self._silent:
            raise OSError(self._silent)
        with closing(ask.connection(self._place, self._seconds)) as asked:
            try:
                asked.request("GET", path)
                answer = asked.getresponse()
                return answer.read(_ANSWER_MOST).decode(errors="replace")
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                self._silent = f"no agent answers at {self._place} ({reason})"
                raise OSError(self._silent) from error

    def status(self) -> object:
        """``/status``; None if there is none."""
        try:
            return json.loads(self.get("/status"))
        except (OSError, ValueError):
            return None


# --- secrets -----------------------------------------------------------------------------------------


def learn_secrets(redactor: Redactor, places: Places) -> None:
    """Learn what must not be told, from wherever the agent has it. What cannot be read is left out."""
    redactor.learn(value for name, value in os.environ.items() if is_sensitive(name))
    for file in (places.bgp_config, places.kubeconfig):
        if file is not None:
            _learn_yaml(redactor, file)
    with suppress(OSError):
        redactor.learn([(SERVICE_ACCOUNT / "token").read_text(errors="surrogateescape")])
    with suppress(OSError):
        for file in sorted((places.run_dir / "bgp").iterdir()):
            if file.is_file() and file.stat().st_size <= _FILE_MOST:
                text = file.read_text(errors="surrogateescape")
                redactor.learn(re.findall(r'md5-password\s+"([^"\n]+)"', text))
                redactor.learn(re.findall(r"md5-password\s+([^\s;\"]+)", text))


def _learn_yaml(redactor: Redactor, file: Path) -> None:
    try:
        found = yaml.safe_load(file.read_text(errors="surrogateescape"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return
    redactor.learn(secrets_of(found))
    for named in _files_of(found):
        for secret in {Path(named), file.parent / named}:
            with suppress(OSError):
                redactor.learn([secret.read_text(errors="surrogateescape")])


def _files_of(found: object) -> Iterator[str]:
    """Files that hold a secret, by sensitive keys that end with File."""
    if isinstance(found, dict):
        for key, value in found.items():
            if isinstance(value, str) and str(key).lower().endswith("file") and is_sensitive(str(key)[:-4]):
                yield value
            yield from _files_of(value)
    elif isinstance(found, list):
        for value in found:
            yield from _files_of(value)


# --- parts -------------------------------------------------------------------------------------------


def parts(places: Places, agent: Agent) -> Iterator[Part]:
    """All parts, those that explain most first."""
    yield Part("versions.txt", _versions)
    for path, name in (
        ("/status", "status.json"),
        ("/readyz?verbose", "readyz.txt"),
        ("/livez?verbose", "livez.txt"),
        ("/metrics", "metrics.txt"),
        ("/denies?limit=200", "denies.json"),
    ):
        yield Part(f"agent/{name}", partial(agent.get, path))
    yield Part("agent/log.txt", partial(agent.get, "/log"), end=True)
    yield Part("agent/environment.txt", _environment)
    for backend in Backend:
        for family in Family:
            tool = f"{'iptables' if family is Family.V4 else 'ip6tables'}-{backend}"
            yield Part(f"rules/{tool}-save.txt", partial(_rules, family, backend))
    yield Part("rules/nft.txt", partial(_tool, "nft", "list", "ruleset"))
    yield Part("rules/ipset.txt", partial(_tool, "ipset", "save"))
    for path, line in _COMMANDS.items():
        yield Part(f"{path}.txt", partial(_network, path, line.split()))
    yield Part("network/conntrack.txt", partial(_files, places.root / "proc", ("net/stat/nf_conntrack",)))
    yield Part("network/sysctls.txt", partial(_files, places.root / "proc/sys/net", _SYSCTLS))
    yield Part("node/proc.txt", partial(_files, places.root / "proc", _PROC))
    yield Part("cni/leases.json", partial(_leases, places.state_dir / "leases.db", places.run_dir))
    yield Part("cni/network-lists.txt", partial(_files, places.cni_conf_dir, ("*.conf", "*.conflist")))
    yield Part("bgp/config.yaml", partial(_config, places.bgp_config))
    yield Part("bgp/exabgp.txt", partial(_files, places.run_dir / "bgp", ("*.conf*", "*.status", "*.json")))
    yield Part("node/files.txt", partial(_listing, [places.run_dir, places.run_dir / "bgp", places.state_dir]))
    yield Part("logs/journal.txt", _journal, end=True)
    yield from _pod_logs(places.root / "var/log/pods")


def _versions() -> str:
    lines = [
        f"collected {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}",
        f"felix-py {version('felix-py')}",
        f"kernel {' '.join(os.uname())}",
        f"python {platform.python_version()}",
    ]
    with suppress(OSError):
        lines += [line for line in Path("/etc/os-release").read_text().splitlines() if line.startswith("PRETTY")]
    for argv in (("iptables-nft", "-V"), ("iptables-legacy", "-V"), ("ipset", "version"), ("conntrack", "-V")):
        try:
            lines.append(f"{argv[0]}: {' '.join(_tool(*argv).split())}")
        except (NotHere, ToolError) as error:
            lines.append(f"{argv[0]}: {error}")
    with suppress(PackageNotFoundError):
        lines.append(f"exabgp {version('exabgp')}")
    lines += sorted(f"package {one.name} {one.version}" for one in distributions() if one.name)
    return "\n".join([*lines, ""])


def _environment() -> str:
    """The agent's settings of this process: no other variable."""
    prefixes = ("FELIX_PY_", "KUBERNETES_SERVICE_")
    ours = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    return "".join(f"{name}={value}\n" for name, value in sorted(ours.items()) if not is_sensitive(name))


def _rules(family: Family, backend: Backend) -> str:
    if backend is Backend.LEGACY and not has_legacy_tables(family):
        raise NotHere("the kernel has no legacy tables of this family")
    return run([command(family, backend, "save"), "-c"], timeout=_SECONDS)


def _tool(*argv: str) -> str:
    path = shutil.which(argv[0], path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
    if path is None:
        raise NotHere(f"{argv[0]} is not installed")
    return run([path, *argv[1:]], timeout=_SECONDS)


def _journal() -> str:
    try:
        return _tool("journalctl", "--no-pager", "-n", "3000", "-u", "felix-py*")
    except ToolError as error:  # a machine without systemd, or whose journal this process does not see
        raise NotHere(str(error)) from error


def _network(path: str, argv: Sequence[str]) -> str:
    try:
        return _tool(*argv)
    except NotHere:
        return _netlink(*_DUMPS[path])


def _netlink(method: str, options: dict[str, int]) -> str:
    from pyroute2 import IPRoute

    lines = []
    with IPRoute() as netlink:
        for message in getattr(netlink, method)(**options):
            fields = {key: value for key, value in message.items() if key not in ("attrs", "header")}
            lines.append(json.dumps({**fields, **dict(message.get("attrs", ()))}, default=str))
    return "\n".join([*lines, ""])


def _files(folder: Path, patterns: Sequence[str]) -> str:
    """The content of files, each under its name. One that cannot be read says so."""
    texts = []
    for pattern in patterns:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                name = file.relative_to(folder)
                try:
                    with file.open(errors="replace") as opened:
                        content = opened.read(_FILE_MOST).rstrip("\n")
                except OSError as error:
                    content = f"({error.strerror})"
                texts.append(f"{name} = {content}" if "\n" not in content else f"== {name}\n{content}")
    if not texts:
        raise NotHere(f"there is nothing like {', '.join(patterns)[:100]} in {folder}")
    return "\n".join([*texts, ""])


def _leases(database: Path, scratch: Path) -> str:
    """``scratch``: a folder for a moment, where no other can be written to, as in a container."""
    if not database.exists():
        raise NotHere(f"there is no {database}")
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(scratch)
    return json.dumps([msgspec.to_builtins(lease) for lease in read_leases(database)], indent=1, default=str)


def _config(file: Path | None) -> str:
    if file is None:
        raise NotHere("no --bgp-config")
    return file.read_text(errors="replace")


def _listing(folders: Sequence[Path]) -> str:
    lines = []
    for folder in folders:
        try:
            for entry in sorted(folder.iterdir()):
                found = entry.lstat()
                when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
                lines.append(f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {found.st_size} {when} {entry}")
        except OSError as error:
            lines.append(f"{folder}: {error.strerror}")
    return "\n".join([*lines, ""])


def _pod_logs(folder: Path) -> Iterator[Part]:
    """The tails of the newest logs of felix-py's containers, where this process sees the kubelet's folder."""
    found: list[tuple[float, Path]] = []
    with suppress(OSError):
        for file in folder.glob("*_felix-py*/*/*.log"):
            with suppress(OSError):
                found.append((file.stat().st_mtime, file))
    for _, file in sorted(found, reverse=True)[:_LOG_FILES]:
        yield Part(f"logs/{'/'.join(file.relative_to(folder).parts)}", partial(_tail, file), end=True)


def _tail(file: Path) -> str:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _LOG_TAIL))
        return opened.read(_LOG_TAIL).decode(errors="replace")
