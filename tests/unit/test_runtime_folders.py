"""Where the container runtime looks, as its configuration says."""

from __future__ import annotations

from pathlib import Path

import pytest

from felix_py.cni.runtime_folders import RuntimeFolders, runtime_folders

DEBIAN = """
version = 2
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""
"""What Debian 12 ships as /etc/containerd/config.toml."""

VERSION_3 = """
version = 3
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/usr/libexec/cni', '/opt/cni/bin']
  conf_dir = '/run/cni'
"""


def write(root: Path, file: str, text: str) -> None:
    target = root / file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


@pytest.mark.parametrize(
    ("text", "plugins", "lists"),
    [
        (DEBIAN, "/usr/lib/cni", "/etc/cni/net.d"),
        (VERSION_3, "/usr/libexec/cni", "/run/cni"),
        ('[plugins.cri.cni]\nbin_dir = "/usr/local/cni"\n', "/usr/local/cni", "/etc/cni/net.d"),
        ("version = 2\n", "/opt/cni/bin", "/etc/cni/net.d"),
        ("[plugins.cri.cni]\nbin_dir = 7\nconf_dir = 'here'\n", "/opt/cni/bin", "/etc/cni/net.d"),
        ("plugins = 3\n", "/opt/cni/bin", "/etc/cni/net.d"),
        ("no toml at all [", "/opt/cni/bin", "/etc/cni/net.d"),
    ],
    ids=["debian", "version 3", "version 1", "nothing said", "wrong types", "wrong table", "no toml"],
)
def test_containerd(tmp_path: Path, text: str, plugins: str, lists: str) -> None:
    write(tmp_path, "etc/containerd/config.toml", text)
    assert runtime_folders(tmp_path) == RuntimeFolders(Path(plugins), Path(lists))


def test_crio_where_there_is_no_containerd(tmp_path: Path) -> None:
    write(tmp_path, "etc/crio/crio.conf", '[crio.network]\nplugin_dirs = ["/opt/cni/bin"]\n')
    write(tmp_path, "etc/crio/crio.conf.d/10-ours.conf", '[crio.network]\nplugin_dirs = ["/usr/lib/cni/"]\n')
    assert runtime_folders(tmp_path).plugins == Path("/usr/lib/cni")


def test_neither(tmp_path: Path) -> None:
    assert runtime_folders(tmp_path) == RuntimeFolders()
