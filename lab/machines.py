"""Network namespaces, links, folders and programs of the lab's machines: the router and the nodes."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

from felix_py.cni.conflist import install_client
from felix_py.config import AgentConfig, environment
from lab import topology
from lab.bird import bird_config
from lab.machine import Program, Spec
from lab.namespaces import ANSWER_ALL, add_netns, inside, run, write_sysctls
from lab.state import LabError, Record, StateDir
from lab.topology import TOR, Node, machine_netns
from policy.model import Family

STANDARD_PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins has them."""

CNI_CONF_DIR = str(AgentConfig.cni_conf_dir)
CNI_BIN_DIR = str(AgentConfig.cni_bin_dir)
_RUN_DIR = str(AgentConfig.run_dir)
_STATE_DIR = str(AgentConfig.state_dir)
_CONFIG_DIR = "/etc/felix-py"
_UPLINK = "eth0"

_ROUTER_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/fib_multipath_hash_policy": "1",
    "ipv6/conf/all/forwarding": "1",
}


# --- the network -------------------------------------------------------------------------------------


def make_network(lab: str, nodes: Sequence[Node]) -> None:
    """Make all namespaces, links, addresses and underlay routes.

    Nodes have routes to the API server, to each other's own addresses and to the world, and no others: no
    default route and none to pods, so that what BGP taught is what carries pods' packets.
    """
    families = nodes[0].families
    tor = machine_netns(lab, TOR)
    write_sysctls(add_netns(tor), {**_ROUTER_SYSCTLS, **ANSWER_ALL})
    for node in nodes:
        add_netns(machine_netns(lab, node.name))
    addresses = [topology.API_ADDRESS, *topology.WORLD.values()]
    commands = [f"address add {_host(address[family])} dev lo" for address in addresses for family in families]
    for node in nodes:
        peer = f"peer name {_UPLINK} netns {machine_netns(lab, node.name)}"
        commands.append(f"link add {node.name} type veth {peer}")
        commands += _address_commands(node.name, node.gateways, node)
        commands.append(f"link set {node.name} up")
    _batch(tor, commands)
    for node in nodes:
        _batch(machine_netns(lab, node.name), _node_commands(node))


def _node_commands(node: Node) -> list[str]:
    commands = [*_address_commands(_UPLINK, node.addresses, node), f"link set {_UPLINK} up"]
    for family, gateway in node.gateways.items():
        commands += [
            f"route add {network} via {gateway}"
            for network in (topology.UNDERLAY[family], topology.WORLD_CIDRS[family])
        ]
    return commands


def _address_commands(device: str, addresses: dict[Family, str], node: Node) -> list[str]:
    return [
        f"address add {address}/{node.link_prefix[family]} dev {device}{' nodad' * (family is Family.V6)}"
        for family, address in addresses.items()
    ]


def _host(address: str) -> str:
    return f"{address}/128 nodad" if ":" in address else f"{address}/32"


def _batch(netns: str, commands: Sequence[str]) -> None:
    run("ip", "-n", netns, "-batch", "-", stdin="".join(f"{line}\n" for line in commands))


def listen_in(netns: Path, address: str, port: int) -> socket.socket:
    """A listening TCP socket in another network namespace."""
    with inside(netns):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=512)


# --- the machines ------------------------------------------------------------------------------------


def prepare_router(state: StateDir, record: Record, nodes: Sequence[Node]) -> Path:
    """Write what the router needs; returns its spec file."""
    folder = state.machine(TOR)
    _make_folders(folder, ("log", "bird"))
    (folder / "bird" / "bird.conf").write_text(bird_config(nodes))
    # The socket at its default place: `birdc` works in the machine without options.
    argv = ("bird", "-f", "-c", "/run/bird/bird.conf", "-s", "/run/bird/bird.ctl")
    spec = Spec(
        name=TOR,
        netns=machine_netns(record.name, TOR),
        folders={"/run/bird": "bird"},
        programs=(Program("bird", argv),),
    )
    return _write_spec(folder, spec)


def prepare_node(state: StateDir, record: Record, node: Node, kubeconfig: str) -> Path:
    """Write what a node needs (``kubeconfig`` is the file's text); returns its spec file.

    Raises:
        LabError: the CNI client or a plugin is missing.
    """
    folder = state.machine(node.name)
    _make_folders(folder, ("log", "config", "run", "lib", "cni-conf", "cni-bin"))
    (folder / "config" / "kubeconfig").write_text(kubeconfig)
    (folder / "config" / "bgp.yaml").write_text(yaml.safe_dump(_bgp_config(node), sort_keys=False))
    _install_plugins(folder / "cni-bin")
    spec = Spec(
        name=node.name,
        netns=machine_netns(record.name, node.name),
        folders={
            _CONFIG_DIR: "config",
            _RUN_DIR: "run",
            _STATE_DIR: "lib",
            CNI_CONF_DIR: "cni-conf",
            CNI_BIN_DIR: "cni-bin",
        },
        programs=(
            Program(
                "agent",
                (str(Path(sys.executable).with_name("felix-py")), "agent", "--log-format", "json"),
                _agent_settings(node, record.shape.backend),
            ),
            Program(
                "bgp",
                (sys.executable, "-m", "bgp.sidecar", "--run-dir", f"{_RUN_DIR}/bgp"),
                {"FELIX_PY_NODE_NAME": node.name},
            ),
        ),
        links=_alternatives(record.shape.backend),
    )
    return _write_spec(folder, spec)


def _make_folders(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).mkdir(parents=True)
    if "run" in names:
        (folder / "run" / "bgp").mkdir()


def _write_spec(folder: Path, spec: Spec) -> Path:
    path = folder / "spec.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))
    return path


def _agent_settings(node: Node, backend: str) -> dict[str, str]:
    """The agent's settings as environment, so that other commands that run on the node have the same."""
    return environment(
        node_name=node.name,
        kubeconfig=f"{_CONFIG_DIR}/kubeconfig",
        run_dir=_RUN_DIR,
        state_dir=_STATE_DIR,
        cni_conf_dir=CNI_CONF_DIR,
        cni_bin_dir=CNI_BIN_DIR,
        backend=backend,
        discovery_interval=1,  # who applies a CRD in a lab is watching
        health_address=AgentConfig.health_address,
        cluster_cidrs=[topology.CLUSTER_CIDRS[family] for family in node.families],
        service_cidrs=[topology.SERVICE_CIDRS[family] for family in node.families],
    )


def _bgp_config(node: Node) -> dict[str, object]:
    return {
        "asNumber": node.asn,
        "routerID": node.router_id,
        "peers": [
            {"peerIP": gateway, "asNumber": topology.TOR_ASN, "sourceAddress": node.addresses[family]}
            for family, gateway in node.gateways.items()
        ],
    }


def _install_plugins(folder: Path) -> None:
    try:
        install_client(folder, Path(_RUN_DIR) / "cni.sock")
    except FileNotFoundError as error:
        raise LabError(str(error)) from error
    for plugin in STANDARD_PLUGINS.iterdir():
        (folder / plugin.name).symlink_to(plugin)


def _alternatives(backend: str) -> dict[str, str]:
    """Debian's alternatives, so that other programs on the node (portmap) write where the agent does."""
    if backend == "auto":
        return {}
    links = {}
    for tool in ("iptables", "ip6tables"):
        for ending in ("", "-save", "-restore"):
            program = shutil.which(f"{tool}-{backend}{ending}")
            if program is not None:
                links[f"/etc/alternatives/{tool}{ending}"] = program
    return links
