"""The agent's one configuration: validated once, frozen, passed around."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from felix_py.records import Backend
from policy.syntax import canonical_cidr


class ConfigError(ValueError):
    """A setting that cannot be used: the message names it and says what to do."""


class EndpointToHost(enum.StrEnum):
    """What happens to a packet from a pod to its node once egress policy allows it (as in Calico)."""

    RETURN = "return"
    ACCEPT = "accept"
    DROP = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Settings of ``felix-py agent``; the command's help describes each."""

    node_name: str
    kubeconfig: Path | None = None
    state_dir: Path = Path("/var/lib/felix-py")
    run_dir: Path = Path("/run/felix-py")
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dir: Path = Path("/opt/cni/bin")
    chained_plugins: tuple[str, ...] = ("portmap",)
    cluster_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    backend: Backend | None = None
    bgp_config: Path | None = None
    mark_mask: int = 0xFFFF0000
    nat_outgoing: bool = True
    endpoint_to_host: EndpointToHost = EndpointToHost.RETURN
    drop_invalid: bool = True
    revoke_established: bool = True
    mtu: int = 0
    refresh_interval: float = 90.0
    cni_timeout: float = 10.0
    discovery_interval: float = 15.0
    health_address: str = "127.0.0.1:9099"
    socket_group: str = "root"
    deny_log: bool = True
    deny_log_group: int = 88  # not 0 or 1 (ulogd's samples), 1 or 2 (Calico), 100 (kube-router)
    deny_log_rate: int = 10
    deny_log_lines: bool = True

    def __post_init__(self) -> None:
        if not self.node_name:
            raise ConfigError("--node-name is empty; give the name that `kubectl get nodes` shows for this node")
        for option, cidrs in (("--cluster-cidr", self.cluster_cidrs), ("--service-cidr", self.service_cidrs)):
            for cidr in cidrs:
                _check_cidr(option, cidr)
        if self.mtu and not 68 <= self.mtu <= 65535:
            raise ConfigError(f"--mtu {self.mtu}: IPv4 needs 68 at least and the kernel takes 65535 at most")
        for name in self.chained_plugins:
            if not name or "/" in name:
                raise ConfigError(f"--chained-plugin {name!r}: the name of a program in the CNI bin folder")

    @property
    def cni_socket(self) -> Path:
        """Where ``felix-py-cni`` finds the agent."""
        return self.run_dir / "cni.sock"

    @property
    def agent_socket(self) -> Path:
        """Where commands such as ``felix-py status`` find the agent."""
        return self.run_dir / "agent.sock"

    @property
    def bgp_dir(self) -> Path:
        """The folder shared with the ExaBGP sidecar."""
        return self.run_dir / "bgp"


def _check_cidr(option: str, cidr: str) -> None:
    try:
        canonical = canonical_cidr(cidr)
    except ValueError as error:
        raise ConfigError(f"{option} {cidr}: {error}") from None
    if canonical != cidr:
        raise ConfigError(f"{option} {cidr}: write it as {canonical}")
    if cidr.endswith("/0"):
        raise ConfigError(f"{option} {cidr}: everything cannot be the cluster's own")
