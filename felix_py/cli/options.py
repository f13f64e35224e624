"""Options that several commands share, and what they become.

Those that change what the agent writes are declared here once, so that commands that compare have the same.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from felix_py.config import ConfigError, EndpointToHost
from felix_py.records import Backend

if TYPE_CHECKING:
    from felix_py.datastore.client import Api

_ENV = "FELIX_PY_"
_PATIENCE = 2.0
_CONTROL = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")

Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        envvar=[_ENV + "KUBECONFIG", "KUBECONFIG"],
        metavar="FILE",
        help="Credentials for the API server. [default: ~/.kube/config, else the pod's service account]",
        show_default=False,
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context of the kubeconfig. [default: its own]", show_default=False
    ),
]
NodeName = Annotated[
    str,
    typer.Option(
        "--node-name",
        envvar=_ENV + "NODE_NAME",
        metavar="NAME",
        help="This node's name in the cluster. [default: the host name]",
        show_default=False,
    ),
]
BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        envvar=_ENV + "BACKEND",
        metavar="auto|legacy|nft",
        help="iptables backend; auto: the one that this node's other programs use.",
    ),
]
CniConfDir = Annotated[
    Path | None,
    typer.Option(
        "--cni-conf-dir",
        envvar=_ENV + "CNI_CONF_DIR",
        metavar="FOLDER",
        help="Where the container runtime reads its network list. [default: what containerd's or CRI-O's "
        "configuration says, else /etc/cni/net.d]",
        show_default=False,
    ),
]
CniBinDir = Annotated[
    Path | None,
    typer.Option(
        "--cni-bin-dir",
        envvar=_ENV + "CNI_BIN_DIR",
        metavar="FOLDER",
        help="Where the container runtime finds CNI plugins. [default: what containerd's or CRI-O's "
        "configuration says, else /opt/cni/bin]",
        show_default=False,
    ),
]
StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        envvar=_ENV + "STATE_DIR",
        metavar="FOLDER",
        help="Address leases; must survive a reboot.",
        readable=False,  # who needs it says why it cannot be read
    ),
]
ClusterCidrs = Annotated[
    list[str],
    typer.Option(
        "--cluster-cidr",
        envvar=_ENV + "CLUSTER_CIDRS",
        metavar="CIDR",
        help="All pod addresses of the cluster; repeat per family. [default: every node's podCIDRs]",
        show_default=False,
    ),
]
MarkMask = Annotated[
    str,
    typer.Option(
        "--mark-mask",
        envvar=_ENV + "MARK_MASK",
        metavar="MASK",
        help="Packet mark bits of our own: 16 in a row.",
    ),
]
NatOutgoing = Annotated[
    bool,
    typer.Option(
        "--nat-outgoing/--no-nat-outgoing",
        envvar=_ENV + "NAT_OUTGOING",
        help="Masquerade what pods send out of the cluster.",
    ),
]
EndpointToHostOption = Annotated[
    EndpointToHost,
    typer.Option(
        "--endpoint-to-host",
        envvar=_ENV + "ENDPOINT_TO_HOST",
        help="Packets from pods to their node, after egress policy. `return`: the node's own rules decide.",
    ),
]
DropInvalid = Annotated[
    bool,
    typer.Option(
        "--drop-invalid/--no-drop-invalid",
        envvar=_ENV + "DROP_INVALID",
        help="Drop packets that conntrack calls INVALID.",
    ),
]
RevokeEstablished = Annotated[
    bool,
    typer.Option(
        "--revoke-established/--no-revoke-established",
        envvar=_ENV + "REVOKE_ESTABLISHED",
        help="End established connections that a change of policy denies.",
    ),
]
DenyLogging = Annotated[
    bool,
    typer.Option(
        "--deny-log/--no-deny-log",
        envvar=_ENV + "DENY_LOG",
        help="Log denied packets, for `felix-py denies`.",
    ),
]
DenyLogGroup = Annotated[
    int,
    typer.Option(
        "--deny-log-group",
        envvar=_ENV + "DENY_LOG_GROUP",
        min=0,
        max=65535,
        metavar="NUMBER",
        help="NFLOG group of the deny log: one that no other program on the node reads.",
    ),
]
DenyLogRate = Annotated[
    int,
    typer.Option(
        "--deny-log-rate",
        envvar=_ENV + "DENY_LOG_RATE",
        min=1,
        max=1000,
        metavar="PACKETS",
        help="Packets a second that one rule logs at most.",
    ),
]
AgentSocket = Annotated[
    str,
    typer.Option(
        "--agent-socket",
        "--agent",
        envvar=_ENV + "AGENT_SOCKET",
        metavar="PATH|URL",
        help="Where to ask the agent: its socket, or http://ADDRESS:PORT where that is forwarded to.",
    ),
]
DEFAULT_AGENT_SOCKET = "/run/felix-py/agent.sock"

# --- of a command and of its namesake for the whole lab ----------------------------------------------

_ENDS = "POD, NAMESPACE/POD, node/NAME, an address, or `world`."

Source = Annotated[str, typer.Argument(metavar="SRC", help=f"Who connects: {_ENDS}")]
Destination = Annotated[str, typer.Argument(metavar="DST", help=f"To whom: {_ENDS}")]
DestinationPort = Annotated[
    str,
    typer.Option(
        "--port",
        metavar="PORT[/PROTOCOL]",
        help="80, 80/tcp, 53/udp, or the name of a port of the destination pod. "
        "[default: each port that its containers list]",
        show_default=False,
    ),
]
PodNamespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of pods that are named without one.")
]
IPv4Only = Annotated[bool, typer.Option("--ipv4", help="IPv4 only.")]
IPv6Only = Annotated[bool, typer.Option("--ipv6", help="IPv6 only.")]
NoKernel = Annotated[bool, typer.Option("--no-kernel", help="Say what policy wants, and no more.")]

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is denied from now on.")]
Since = Annotated[
    str, typer.Option(metavar="DURATION", help="Only what is no older: 30s, 5m, 2h.", show_default=False)
]
DeniedNamespace = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", metavar="NS", help="Only from or to pods of a namespace.", show_default=False
    ),
]
DeniedPod = Annotated[str, typer.Option(metavar="NS/POD", help="Only from or to one pod.", show_default=False)]

PolicyFiles = Annotated[
    list[str],
    typer.Option("--filename", "-f", metavar="FILE", help="YAML or JSON; a folder; `-` is stdin. Repeat."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-R", help="Folders in a folder, too.")]
Delete = Annotated[bool, typer.Option("--delete", help="What if these policies were deleted?")]
ListLimit = Annotated[int, typer.Option(min=0, metavar="NUMBER", help="Most lines of a list.")]
AllLines = Annotated[bool, typer.Option("--all", help="All lines of every list.")]


class OutputFormat(enum.StrEnum):
    """How a command prints what it has found."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Form of what is printed.")]


class PlainHelp(TyperCommand):
    """A command whose help shows arguments by their own names, without those of the Python types behind them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for param in self.params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]


def backend(text: str) -> Backend | None:
    """The backend of ``--backend``; None for auto.

    Raises:
        ConfigError: there is no such backend.
    """
    if text == "auto":
        return None
    try:
        return Backend(text)
    except ValueError:
        raise ConfigError(f"--backend {text}: must be auto, legacy or nft") from None


def mask(text: str) -> int:
    """The number of ``--mark-mask``.

    Raises:
        ConfigError: it is none, or no mask that can be used.
    """
    from felix_py.plan.marks import Marks

    try:
        number = int(text, 0)
    except ValueError:
        raise ConfigError(f"--mark-mask {text}: not a number such as 0xffff0000") from None
    try:
        Marks.from_mask(number)
    except ValueError as error:
        raise ConfigError(f"--mark-mask: {error}") from None
    return number


def printable(text: str) -> str:
    """Text for a terminal: names of rules, and comments in rules of others, may hold anything."""
    return _CONTROL.sub("?", text)


@contextlib.contextmanager
def patience(words: str) -> Iterator[None]:
    """Say on standard error what is being done, if it takes long."""
    timer = threading.Timer(_PATIENCE, lambda: typer.echo(words, err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def usual_kubeconfig(given: Path | None) -> Path | None:
    """The kubeconfig of a command that people run, as kubectl finds it; None: a pod's service account."""
    usual = Path.home() / ".kube" / "config"
    if given is None and usual.is_file() and "KUBERNETES_SERVICE_HOST" not in os.environ:
        return usual
    return given


def connect_api(kubeconfig: Path | None, context: str | None) -> Api:
    """The API server of a command that people run: as kubectl finds it, else as the agent does.

    Raises:
        ConfigError: there is no usable configuration; the message says what to do.
    """
    from felix_py.datastore.client import connect

    return connect(usual_kubeconfig(kubeconfig), context)
