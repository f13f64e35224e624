"""The agent's one configuration: validated once, frozen, passed around. Its fields are the table of settings."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from felix_py.log import LogFormat, LogLevel
from felix_py.records import Backend
from felix_py.settings import Field, Form, Rule, setting, settings_of
from policy.model import Family
from policy.syntax import canonical_cidr


class ConfigError(ValueError):
    """A setting that cannot be used: the message names it and says what to do."""


class EndpointToHost(enum.StrEnum):
    """What happens to a packet from a pod to its node once egress policy allows it (as in Calico)."""

    RETURN = "return"
    ACCEPT = "accept"
    DROP = "drop"


class RouteSource(enum.StrEnum):
    """Where routes to other nodes' pods come from. ``kubernetes``: from Node objects, and the rest by BGP."""

    BGP = "bgp"
    KUBERNETES = "kubernetes"


BGP_CONFIG = Path("/etc/felix-py/bgp.yaml")
"""Where the DaemonSet's pods have the peers, if there are any."""

_FAMILIES = {f"ipv{int(family)}": family for family in Family}

# --- checks beyond type and range --------------------------------------------------------------------


def _node_name(name: str) -> None:
    if not name:
        raise ValueError("give the name that `kubectl get nodes` shows for this node")


def _namespace(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ValueError("not the name of a namespace")


def _cidr(cidr: str) -> None:
    canonical = canonical_cidr(cidr)
    if canonical != cidr:
        raise ValueError(f"write it as {canonical}")
    if cidr.endswith("/0"):
        raise ValueError("everything cannot be the cluster's own")


def _mtu(mtu: int) -> None:
    if mtu and not 68 <= mtu <= 65535:
        raise ValueError("IPv4 needs 68 at least and the kernel takes 65535 at most")


def _plugin(name: str) -> None:
    if not name or "/" in name:
        raise ValueError("the name of a program in the CNI bin folder")


def _backend(text: str) -> Backend | None:
    if text == "auto":
        return None
    try:
        return Backend(text)
    except ValueError:
        raise ValueError("must be auto, legacy or nft") from None


def _families(text: str) -> tuple[Family, ...]:
    try:
        return tuple(sorted({_FAMILIES[word] for word in text.lower().replace(",", " ").split()}))
    except KeyError:
        raise ValueError("must be ipv4, ipv6 or ipv4,ipv6") from None


def _mask(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("not a number such as 0xffff0000") from None


# --- the same in the schema of FelixConfiguration ----------------------------------------------------

_CIDR = (
    Rule(
        "isCIDR(self) && string(cidr(self).masked()) == self",
        "write it as a canonical CIDR: 10.64.0.0/16, fd00::/48",
    ),
    Rule("!isCIDR(self) || cidr(self).prefixLength() > 0", "everything cannot be the cluster's own"),
)
_MTU = (
    Rule("self == 0 || self >= 68 && self <= 65535", "IPv4 needs 68 at least and the kernel takes 65535 at most"),
)
_PLUGIN = (Rule("self != '' && !self.contains('/')", "the name of a program in the CNI bin folder"),)

# --- the table ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)  # no slots: the defaults are read from the class
class AgentConfig:
    """Settings of ``felix-py agent``, in the order of its help. Raises ConfigError for an invalid value."""

    node_name: str = setting(
        "",
        "This node's name in the cluster.",
        metavar="NAME",
        otherwise="the host name",
        check=_node_name,
        calico="FelixHostname",
    )
    kubeconfig: Path | None = setting(
        None,
        "Credentials for the API server.",
        metavar="FILE",
        otherwise="the pod's service account",
        also="KUBECONFIG",
    )
    namespace: str = setting(
        "kube-system",
        "The agent's own namespace, whose Secrets BGPPeers name.",
        metavar="NAME",
        check=_namespace,
    )
    state_dir: Path = setting(
        Path("/var/lib/felix-py"), "Address leases; must survive a reboot.", metavar="FOLDER"
    )
    run_dir: Path = setting(
        Path("/run/felix-py"),
        "Sockets, and in its subfolder bgp what the BGP sidecar shares with the agent.",
        metavar="FOLDER",
    )
    cni_conf_dir: Path = setting(
        Path("/etc/cni/net.d"),
        "Where the container runtime reads its network list.",
        metavar="FOLDER",
        otherwise="what containerd's or CRI-O's configuration says, else /etc/cni/net.d",
    )
    cni_bin_dir: Path = setting(
        Path("/opt/cni/bin"),
        "Where the container runtime finds CNI plugins.",
        metavar="FOLDER",
        otherwise="what containerd's or CRI-O's configuration says, else /opt/cni/bin",
    )
    chained_plugins: tuple[str, ...] = setting(
        ("portmap",),
        "Standard CNI plugins to run after ours, in this order.",
        metavar="PLUGIN",
        check=_plugin,
        field=Field("chainedPlugins", rules=_PLUGIN),
    )
    cluster_cidrs: tuple[str, ...] = setting(
        (),
        "All pod addresses of the cluster, of each family.",
        metavar="CIDR",
        otherwise="every node's podCIDRs",
        check=_cidr,
        field=Field("clusterCIDRs", rules=_CIDR),
    )
    service_cidrs: tuple[str, ...] = setting(
        (),
        "Addresses of Services, of each family, which peers may never teach us routes for.",
        metavar="CIDR",
        otherwise="none",
        check=_cidr,
        field=Field("serviceCIDRs", rules=_CIDR),
    )
    backend: Backend | None = setting(
        None,
        "iptables backend; auto: the one that this node's other programs use.",
        metavar="auto|legacy|nft",
        form=Form(_backend, lambda backend: backend or "auto"),
        calico="iptablesBackend",
        field=Field("iptablesBackend", {"Auto": None, "Legacy": Backend.LEGACY, "NFT": Backend.NFT}),
    )
    ip_families: tuple[Family, ...] = setting(
        (),
        "Families of addresses that pods get and that are programmed; of another one, pods can send nothing.",
        metavar="ipv4|ipv6|ipv4,ipv6",
        otherwise="those that the kernel has",
        form=Form(_families, lambda families: ",".join(f"ipv{int(family)}" for family in families)),
        calico="ipv6Support",
        field=Field("ipFamilies", _FAMILIES, choices=True),
    )
    bgp_config: Path | None = setting(
        None,
        "YAML file with asNumber, routerID and peers; see docs/bgp.md.",
        metavar="FILE",
        otherwise="/etc/felix-py/bgp.yaml, if it is there; else BGP as BGPConfigurations and BGPPeers say",
    )
    bgp_foreign_annotations: bool = setting(
        False,
        "Read Calico's and kube-router's annotations of Nodes, and Calico's of pods and namespaces, where there "
        "are none of ours, see docs/bgp.md and docs/ipam.md.",
        field=Field("bgpForeignAnnotations"),
    )
    route_source: RouteSource = setting(
        RouteSource.BGP,
        "Where routes to other nodes' pods come from. `kubernetes`: for nodes of the same segment from their "
        "Node objects, for others by BGP, if there is any.",
        field=Field("routeSource", {source.value: source for source in RouteSource}),
    )
    mark_mask: int = setting(
        0xFFFF0000,
        "Packet mark bits of our own: 16 in a row.",
        metavar="MASK",
        form=Form(_mask, hex),
        calico="iptablesMarkMask",
    )
    nat_outgoing: bool = setting(
        True,
        "Masquerade what pods send out of the cluster.",
        calico="natOutgoing (of an IPPool)",
        field=Field("natOutgoing"),
    )
    endpoint_to_host: EndpointToHost = setting(
        EndpointToHost.RETURN,
        "Packets from pods to their node, after egress policy. `return`: the node's own rules decide.",
        calico="defaultEndpointToHostAction",
        field=Field("defaultEndpointToHostAction"),
    )
    drop_invalid: bool = setting(
        True,
        "Drop packets that conntrack calls INVALID.",
        calico="disableConntrackInvalidCheck (the opposite)",
        field=Field("dropInvalid"),
    )
    revoke_established: bool = setting(
        True,
        "End established connections that a change of policy denies.",
        field=Field("revokeEstablished"),
    )
    announce_pod_ips: bool = setting(
        False,
        "Have a pod's addresses in an annotation as soon as it has them, and believe those of other nodes' pods "
        "until the kubelet reports them, see docs/security.md.",
        field=Field("announcePodIPs"),
    )
    connect_containers: bool = setting(
        False,
        "Connect containers that are no pods', such as those of `ctr run --cni`: no policy selects them, see "
        "docs/cni.md.",
    )
    mtu: int = setting(
        0,
        "MTU of pod interfaces; 0: that of the node's uplinks.",
        metavar="BYTES",
        check=_mtu,
        live=True,
        field=Field("mtu", rules=_MTU),
    )
    refresh_interval: float = setting(
        90,
        "Time between two comparisons with the kernel.",
        metavar="SECONDS",
        least=1,
        most=86400,
        calico="iptablesRefreshInterval, ipsetsRefreshInterval, routeRefreshInterval",
        live=True,
        field=Field("refreshIntervalSeconds"),
    )
    cni_timeout: float = setting(
        10,
        "How long a CNI ADD may wait for its pod and its policy.",
        metavar="SECONDS",
        least=0.1,
        most=3600,
        live=True,
        field=Field("cniTimeoutSeconds"),
    )
    address_cooldown: float = setting(
        60,
        "How long a released address rests while another one is free.",
        metavar="SECONDS",
        least=0,
        most=86400,
        live=True,
        field=Field("addressCooldownSeconds"),
    )
    strict_affinity: bool = setting(
        True,
        "Give pods addresses of the node's own blocks only. Otherwise nodes lend each other single addresses "
        "where an IPPool has no block left, see docs/ipam.md.",
        calico="strictAffinity (of the IPAMConfiguration, where it is false)",
        live=True,
        field=Field("strictAffinity"),
    )
    discovery_interval: float = setting(
        15,
        "Time until a look for the cluster-scoped policies' CRDs, where they may not be watched; "
        "it grows to 20 times that.",
        metavar="SECONDS",
        least=1,
        most=86400,
        field=Field("discoveryIntervalSeconds"),
    )
    health_address: str = setting(
        "127.0.0.1:9099",
        "Where to serve /livez, /readyz and /metrics, to every local user.",
        metavar="ADDRESS:PORT",
        calico="healthHost, healthPort",
    )
    socket_group: str = setting(
        "root", "Who besides root may ask RUN-DIR/agent.sock for /status, /flows and /denies.", metavar="GROUP"
    )
    deny_log: bool = setting(
        True,
        "Log denied packets, for `felix-py denies`.",
        field=Field("denyLog"),
    )
    deny_log_group: int = setting(
        88,  # not 0 or 1 (ulogd's samples), 1 or 2 (Calico), 100 (kube-router)
        "NFLOG group of the deny log: one that no other program on the node reads.",
        metavar="NUMBER",
        least=0,
        most=65535,
        field=Field("denyLogGroup"),
    )
    deny_log_rate: int = setting(
        10,
        "Packets a second that one rule logs at most.",
        metavar="PACKETS",
        least=1,
        most=1000,
        field=Field("denyLogRate"),
    )
    deny_log_lines: bool = setting(
        True,
        "Write denied packets to the agent's own log, too.",
        live=True,
        field=Field("denyLogLines"),
    )
    log_level: LogLevel = setting(
        LogLevel.INFO,
        "The least important lines to log.",
        calico="logSeverityScreen",
        live=True,
        field=Field("logSeverityScreen"),
    )
    log_format: LogFormat = setting(LogFormat.AUTO, "auto: text on a terminal, JSON elsewhere.")

    def __post_init__(self) -> None:
        try:
            for name, it in SETTINGS.items():
                it.validate(getattr(self, name))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    @property
    def cni_socket(self) -> Path:
        """Socket that ``felix-py-cni`` connects to."""
        return self.run_dir / "cni.sock"

    @property
    def agent_socket(self) -> Path:
        """Socket that commands such as ``felix-py status`` connect to."""
        return self.run_dir / "agent.sock"

    @property
    def bgp_dir(self) -> Path:
        """The folder shared with the ExaBGP sidecar."""
        return self.run_dir / "bgp"


SETTINGS = settings_of(AgentConfig)

FIELDS = {it.field.name: it for it in SETTINGS.values() if it.field is not None}
"""The settings of FelixConfiguration, by the names of its fields."""


def value_of(name: str, given: Any) -> Any:
    """Returns a setting's value from what the command line gives; raises ConfigError if it cannot be parsed."""
    try:
        return SETTINGS[name].read(given)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def environment(**values: Any) -> dict[str, str]:
    """Returns settings as environment variables, for another process."""
    return {SETTINGS[name].environment[0]: SETTINGS[name].text(value) for name, value in values.items()}


def as_json(config: AgentConfig) -> dict[str, Any]:
    """Returns all settings by their JSON names."""
    return {it.json_name: it.as_json(getattr(config, name)) for name, it in SETTINGS.items()}
