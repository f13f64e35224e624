"""Options shared by several commands, and their conversion.

Options that change what the agent writes are declared once, so that commands that compare have the same.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from felix_py.config import SETTINGS, AgentConfig, ConfigError, EndpointToHost, value_of
from felix_py.records import Backend
from felix_py.settings import Setting

if TYPE_CHECKING:
    from felix_py.datastore.client import Api
    from felix_py.desired.marks import Marks

_PATIENCE = 2.0
_MANY = " Repeat the option for more; `none` for none."
_GIVEN = ("COMMANDLINE", "ENVIRONMENT")
_CONTROL = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def option(name: str, *, otherwise: str = "") -> Any:
    """The option of an agent's setting. ``otherwise``: shown in place of the agent's own default."""
    it = SETTINGS[name]
    otherwise = otherwise or it.otherwise
    return typer.Option(
        f"{it.option}/--no-{it.option[2:]}" if it.type is bool else it.option,
        envvar=it.environment,
        metavar=it.metavar or None,
        help=it.meaning + _MANY * it.many + (f" [default: {otherwise}]" if otherwise else ""),
        show_default=not otherwise,
        min=it.least,
        max=it.most,
        readable=it.metavar != "FOLDER",  # the command itself reports why it cannot read a folder
    )


def takes_all_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes its context and keywords an option for each setting."""
    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", only, annotation=typer.Context),
        *(
            inspect.Parameter(name, only, default=_unset(it), annotation=Annotated[_given_type(it), option(name)])
            for name, it in SETTINGS.items()
        ),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def settings_given(given: Mapping[str, Any], context: typer.Context) -> frozenset[str]:
    """Names of the settings among ``given`` that are from the command line or the environment."""
    sources = {
        name: context.get_parameter_source(name) for name, value in given.items() if value not in (None, "")
    }
    return frozenset(name for name, source in sources.items() if source and source.name in _GIVEN)


def _given_type(it: Setting) -> Any:
    if it.many:
        return list[str]
    kind = str if it.form else it.type
    return kind | None if it.otherwise else kind


def _unset(it: Setting) -> Any:
    """The default of a setting's option; None if it is decided at the start."""
    if it.many:
        return list(it.default)
    if it.otherwise:
        return None
    return it.text(it.default) if it.form else it.default


Kubeconfig = Annotated[
    Path | None, option("kubeconfig", otherwise="~/.kube/config, else the pod's service account")
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context of the kubeconfig. [default: its own]", show_default=False
    ),
]
NodeName = Annotated[str, option("node_name")]
BackendName = Annotated[str, option("backend")]
IpFamilies = Annotated[str, option("ip_families")]
CniConfDir = Annotated[Path | None, option("cni_conf_dir")]
CniBinDir = Annotated[Path | None, option("cni_bin_dir")]
StateDir = Annotated[Path, option("state_dir")]
ClusterCidrs = Annotated[list[str], option("cluster_cidrs")]
MarkMask = Annotated[str, option("mark_mask")]
NatOutgoing = Annotated[bool, option("nat_outgoing")]
EndpointToHostOption = Annotated[EndpointToHost, option("endpoint_to_host")]
DropInvalid = Annotated[bool, option("drop_invalid")]
RevokeEstablished = Annotated[bool, option("revoke_established")]
DenyLogging = Annotated[bool, option("deny_log")]
DenyLogGroup = Annotated[int, option("deny_log_group")]
DenyLogRate = Annotated[int, option("deny_log_rate")]
AUTO: str = _unset(SETTINGS["backend"])
MARK_MASK: str = _unset(SETTINGS["mark_mask"])
AgentSocket = Annotated[
    str,
    typer.Option(
        "--agent-socket",
        "--agent",
        envvar="FELIX_PY_AGENT_SOCKET",
        metavar="PATH|URL",
        help="Where to ask the agent: its socket, or http://ADDRESS:PORT where that is forwarded to.",
    ),
]
DEFAULT_AGENT_SOCKET = str(AgentConfig.run_dir / "agent.sock")

# --- shared with the lab's command of the same name --------------------------------------------------

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
    """The format of a command's output."""

    TEXT = "text"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Form of what is printed.")]


class PlainValues:
    """Takes plain values without pydantic, which typer loads for all: that takes longer than most commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options and arguments."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if not isinstance(param.process_value, partial):
                param.process_value = partial(_value, param, param.process_value)
        return params


class PlainGroup(PlainValues, TyperGroup):
    """A group of commands."""


class PlainHelp(PlainValues, TyperCommand):
    """A command whose help shows arguments by their names, without their Python types."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for param in self.params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = lambda ctx: None  # type: ignore[method-assign]


_BOOLEANS = {"true": True, "false": False}


def _value(param: TyperArgument | TyperOption, by_typer: Callable[..., Any], ctx: Any, given: Any) -> Any:
    """The value of a parameter. What :func:`_plain` does not know is left to typer, as are all errors."""
    try:
        value = _plain(param, given)
    except ValueError:
        return by_typer(ctx, given)
    if param.required and param.value_is_missing(value):
        return by_typer(ctx, given)
    return param.callback(ctx, param, value) if param.callback else value


def _plain(param: TyperArgument | TyperOption, value: Any) -> Any:
    """What typer makes of a plain value that is valid; ValueError for all others."""
    info, kind = param.type_descriptor.parameter_info, param.type_descriptor.annotation
    if value is None:
        return () if param.multiple or param.nargs == -1 else None
    if kind == list[str] and not isinstance(value, str):
        return list(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    if kind is bool and str(value).lower() in _BOOLEANS:
        return _BOOLEANS[str(value).lower()]
    if kind in (int, float) and not isinstance(value, bool):
        number = kind(value)
        if (info.min is None or info.min <= number) and (info.max is None or number <= info.max):
            return number
    if kind is Path and (not info.readable or os.access(value, os.R_OK) or not os.path.exists(value)):
        return Path(value)
    if kind is str and isinstance(value, str):
        return value
    raise ValueError(value)


def backend(text: str) -> Backend | None:
    """The backend of ``--backend``, None for auto; ConfigError if there is no such backend."""
    found: Backend | None = value_of("backend", text)
    return found


def marks(mask: int) -> Marks:
    """The marks under ``--mark-mask``; ConfigError if the mask is unusable."""
    from felix_py.desired.marks import Marks

    try:
        return Marks.from_mask(mask)
    except ValueError as error:
        raise ConfigError(f"{SETTINGS['mark_mask'].option}: {error}") from None


def printable(text: str) -> str:
    """Text for a terminal without control characters, which rules' names and comments may hold."""
    return _CONTROL.sub("?", text)


def fail(command: str, reason: str, code: int) -> NoReturn:
    """Print why a command failed, and exit with ``code``."""
    typer.echo(f"felix-py {command}: {reason}", err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def patience(words: str) -> Iterator[None]:
    """Print ``words`` on standard error if the block takes long."""
    timer = threading.Timer(_PATIENCE, lambda: typer.echo(words, err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def usual_kubeconfig(given: Path | None) -> Path | None:
    """The kubeconfig of an interactive command, as kubectl finds it; None for a pod's service account."""
    usual = Path.home() / ".kube" / "config"
    if given is None and usual.is_file() and "KUBERNETES_SERVICE_HOST" not in os.environ:
        return usual
    return given


def connect_api(kubeconfig: Path | None, context: str | None) -> Api:
    """The API server of an interactive command: as kubectl finds it, else as the agent does.

    Raises:
        ConfigError: there is no usable configuration; the message says what to do.
    """
    from felix_py.datastore.client import connect

    return connect(usual_kubeconfig(kubeconfig), context)
