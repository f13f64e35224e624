"""The bundle of a node on which everything is at work, with secrets planted wherever one can be."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bgp.sidecar import CONFIG
from felix_py.records import Backend
from lab.apiserver.kubeconfig import write_kubeconfig
from tests.support.isolate import NetworkNamespace, run, veth
from tests.support.live_node import PolicedNode
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("netns")]

FELIX_PY = str(Path(sys.executable).with_name("felix-py"))
SECRETS = (
    "peer-one-hunter",
    "peer-two-hunter",
    "kube-hunter-token",
    "environment-hunter",
    "eyJhunter12.eyJhunter34.sig",
)

BGP = """
asNumber: 64512
peers:
- {peerIP: 192.0.2.9, asNumber: 64513, password: peer-one-hunter}
- {peerIP: 192.0.2.8, asNumber: 64513, passwordFile: FOLDER/two.password}
"""


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
        opened = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive}
        return {name: file.read().decode() for name, file in opened.items() if file is not None}


@pytest.mark.parametrize("backend", list(Backend), ids=str)
def test_all_of_a_node_and_no_secret(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace], backend: Backend
) -> None:
    with PolicedNode(tmp_path, backend, make_netns) as node:
        (tmp_path / "two.password").write_text("peer-two-hunter\n")
        (tmp_path / "bgp.yaml").write_text(BGP.replace("FOLDER", str(tmp_path)))
        write_kubeconfig(node.kubeconfig, node.api.url, "kube-hunter-token")
        node.set_up("--bgp-config", str(tmp_path / "bgp.yaml"), "--refresh-interval", "3600")
        eventually((tmp_path / "run" / "bgp" / CONFIG).exists, 30)
        # Somebody else's rule, list and names tell one, too.
        comment = ("-m", "comment", "--comment", "uses peer-one-hunter")
        run(f"iptables-{backend}", "-A", "OUTPUT", *comment, "-j", "ACCEPT")
        chained = '{"password": "x-hunter-x", "name": "kube-hunter-token"}'
        (tmp_path / "net.d" / "99-other.conflist").write_text(chained)
        environment = {**os.environ, "SOME_API_KEY": "environment-hunter", "FELIX_PY_NOTE": SECRETS[-1]}
        socket = f"--agent-socket={tmp_path}/run/agent.sock"
        out = tmp_path / "out.tar.gz"
        argv = [FELIX_PY, "diags", socket, f"--output={out}"]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        files = unpacked(out)
        told = "\n".join([*files, *files.values(), done.stderr])
        assert [secret for secret in SECRETS if secret in told] == []
        assert "hunter" not in told
        # What it is for.
        manifest = files["MANIFEST"].splitlines()
        failed = [line for line in manifest if line.startswith("FAILED")]
        assert failed == []
        assert {line.split()[1] for line in manifest if line.startswith(("ok", "cut"))} == set(files) - {
            "MANIFEST"
        }
        assert "FELIX-FORWARD" in files[f"rules/iptables-{backend}-save.txt"]
        assert "FELIX-FORWARD" in files[f"rules/ip6tables-{backend}-save.txt"]
        assert "uses [hidden]" in files[f"rules/iptables-{backend}-save.txt"]
        assert "felix4-local" in files["rules/ipset.txt"]
        assert "blackhole" in files["network/routes-ipv4.txt"]
        assert json.loads(files["agent/status.json"])["node"] == "n1"
        assert "felix_py_build_info{" in files["agent/metrics.txt"]
        assert files["agent/readyz.txt"].endswith("readyz check passed\n")
        assert "in sync: policy is in force" in files["agent/log.txt"]
        assert "nf_conntrack_count = " in files["network/sysctls.txt"]
        assert "md5-password [hidden]" in files["bgp/exabgp.txt"]
        assert "peerIP: 192.0.2.9" in files["bgp/config.yaml"]
        assert "felix-py-cni" in files["cni/network-lists.txt"]
        assert {lease["pod"] for lease in json.loads(files["cni/leases.json"])} >= {"web", "db"}
        assert f"kernel {os.uname().sysname}" in files["versions.txt"]
        assert out.stat().st_size < 2 << 20


def test_without_iproute2_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image has no ip(8)."""
    from felix_py.diagnose import node_parts
    from felix_py.diagnose.bundle import NotHere

    def none(*argv: str) -> str:
        raise NotHere(f"{argv[0]} is not installed")

    monkeypatch.setattr(node_parts, "_tool", none)
    veth("up0", "up1", "192.0.2.1/24")
    run("ip", "route", "add", "blackhole", "10.1.0.0/24", "proto", "88")
    wanted = {
        "network/links": "up0",
        "network/addresses": "192.0.2.1",
        "network/routes-ipv4": "10.1.0.0",
        "network/rules-ipv4": "table",
        "network/routes-ipv6": "ff00::",
    }
    for path, words in wanted.items():
        lines = node_parts._network(path, ["ip"]).splitlines()
        assert any(words in line for line in lines), path
        assert all(isinstance(json.loads(line), dict) for line in lines)


def test_a_container_whose_file_system_is_read_only(
    tmp_path: Path, make_netns: Callable[[str], NetworkNamespace]
) -> None:
    """Nothing can be written but the folder that agent and commands share, as in the DaemonSet."""
    shut = "".join(
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && "
        for folder in ("/tmp", "/var/tmp", "/usr")
    )
    with PolicedNode(tmp_path, Backend.NFT, make_netns) as node:
        node.prepare()
        node.start("--refresh-interval", "3600")
        node.ready()
        run_dir = tmp_path / "run"
        shut += f"mount --bind {run_dir} {run_dir} && mount -o remount,rw,bind {run_dir} && "
        command = f'{shut}cd /proc && exec "$@"'
        argv = [FELIX_PY, "diags", f"--agent-socket={run_dir}/agent.sock", "--output=-"]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", command, "sh", *argv], capture_output=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        out = tmp_path / "out.tar.gz"
        out.write_bytes(done.stdout)
        files = unpacked(out)
        assert [line for line in files["MANIFEST"].splitlines() if line.startswith("FAILED")] == []
        assert {lease["pod"] for lease in json.loads(files["cni/leases.json"])} >= {"web", "db"}
        assert [entry.name for entry in run_dir.iterdir() if "leases" in entry.name] == []
