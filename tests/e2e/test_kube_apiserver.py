"""KUBEBUILDER_ASSETS: the lab starts the programs in that folder, and everything goes through them.

A package with the real ones is not at hand; stand-ins with their options check all that is ours: TLS, tokens,
forwarding into the router's namespace, and that both end with the lab.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from lab.build import Options
from lab.lab import Lab
from lab.processes import start_time
from lab.state import Shape
from tests.support.waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.e2e]

ETCD = "#!/bin/sh\nexec sleep 1000\n"
APISERVER = """#!{python}
import os, pathlib, sys
options = dict(word[2:].split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(options["token-auth-file"]).parent
(folder / "token.txt").write_text((folder / "tokens.csv").read_text().partition(",")[0])
os.execv(sys.executable, [
    sys.executable, "-m", "lab.apiserver", "--state-dir", str(folder / "inner"),
    "--listen", options["bind-address"] + ":" + options["secure-port"],
    "--tls-cert", options["tls-cert-file"], "--tls-key", options["tls-private-key-file"],
    "--token-file", str(folder / "token.txt"), "--service-cidr", options["service-cluster-ip-range"],
])
"""


def test_lab_on_programs_of_kubebuilder_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name, text in (("etcd", ETCD), ("kube-apiserver", APISERVER.format(python=sys.executable))):
        (assets / name).write_text(text)
        (assets / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    lab = Lab("real", tmp_path / "labs")
    try:
        lab.up(Options(Shape(nodes=1, families=(4,))))
        assert "https://" in lab.kubeconfig.read_text()
        assert "Running" in lab.kubectl("get", "pods", "-n", "shop").stdout
        server = lab.processes()["apiserver"]
        assert server is not None
        children = Path(f"/proc/{server.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        assert len(pids) == 2
        credentials = lab.kubeconfig.read_text()
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: lab.kubectl("get", "namespaces", check=False).returncode == 0, 30)
        assert lab.kubeconfig.read_text() == credentials, "nodes would not know the server any more"
    finally:
        lab.down()
    # They died with their parent; init may not have asked how yet.
    assert not [pid for pid in pids if start_time(pid) is not None]
