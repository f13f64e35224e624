"""``python -m lab.kube_apiserver``: a real kube-apiserver and etcd in place of the embedded API server.

Used by ``felix-py lab up`` when KUBEBUILDER_ASSETS names the folder with the programs (as controller-runtime's
envtest has it). Takes the same options as :mod:`lab.apiserver`: the inherited sockets are where clients
connect, and every connection is passed on to the kube-apiserver's own loopback port.

A kube-controller-manager in that folder is started as well: Deployments make pods, and namespaces end.
Without it a deleted namespace stays in Terminating, and nothing makes ServiceAccounts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from lab.apiserver.kubeconfig import ensure_certificates, ensure_token, write_kubeconfig, write_private
from lab.namespaces import set_death_signal
from lab.topology import API_ADDRESS

_PATIENCE = 60.0
_POLL = 0.1
_CHUNK = 1 << 16

_CONTROLLERS = "kube-controller-manager"

_NOT_HERE = ("node-ipam-controller", "node-lifecycle-controller", "taint-eviction-controller")
"""Controllers that look after nodes: the lab's are as it makes them, and no kubelet renews their leases."""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class ControlPlane:
    """etcd and kube-apiserver as children of this process, which die with it.

    A folder that another process has left is gone on with: its data, token and certificates.
    """

    def __init__(self, assets: Path, folder: Path, service_cidrs: str) -> None:
        self._assets = assets
        self._folder = folder
        self._service_cidrs = service_cidrs
        self._etcd_port, self._etcd_peer_port, self.port = _free_port(), _free_port(), _free_port()
        self._has_controllers = (assets / _CONTROLLERS).exists()
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> str:
        """Start etcd and the kube-apiserver; returns the administrator's token.

        Raises:
            OSError: a program is not there.
        """
        token = ensure_token(self._folder / "token")
        write_private(self._folder / "tokens.csv", f"{token},admin,admin,system:masters\n".encode())
        self._run("etcd", self._etcd())
        self._run("kube-apiserver", self._apiserver())
        return token

    def start_controllers(self, token: str) -> None:
        """Start the kube-controller-manager, if there is one. Call it when the kube-apiserver is ready."""
        if self._has_controllers:
            kubeconfig = self._folder / f"{_CONTROLLERS}.kubeconfig"
            write_kubeconfig(kubeconfig, f"https://127.0.0.1:{self.port}", token, self._folder / "ca.crt")
            self._run(_CONTROLLERS, self._controllers(kubeconfig))

    def _run(self, name: str, options: Mapping[str, str]) -> None:
        argv = [self._program(name), *(f"--{option}={value}" for option, value in options.items())]
        self._children.append(subprocess.Popen(argv, preexec_fn=_die_with_parent))

    def _program(self, name: str) -> str:
        """The one in the folder, else the system's: distributions have etcd, but no kube-apiserver."""
        own = self._assets / name
        return str(own) if own.exists() else shutil.which(name) or str(own)

    def _etcd(self) -> dict[str, str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._etcd_peer_port))
        return {
            "data-dir": str(self._folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
        }

    def _apiserver(self) -> dict[str, str]:
        hosts = ["localhost", "kubernetes", "127.0.0.1", *API_ADDRESS.values()]
        certificates = ensure_certificates(self._folder, hosts)
        return {
            "etcd-servers": f"http://127.0.0.1:{self._etcd_port}",
            "bind-address": "127.0.0.1",
            "advertise-address": next(iter(API_ADDRESS.values())),  # else it looks for a default route
            "secure-port": str(self.port),
            "tls-cert-file": str(certificates.certificate),
            "tls-private-key-file": str(certificates.key),
            "token-auth-file": str(self._folder / "tokens.csv"),
            "authorization-mode": "RBAC",
            "service-cluster-ip-range": self._service_cidrs,
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": str(certificates.certificate),
            "service-account-signing-key-file": str(certificates.key),
            "allow-privileged": "true",
            **({} if self._has_controllers else {"disable-admission-plugins": "ServiceAccount"}),
        }

    def _controllers(self, kubeconfig: Path) -> dict[str, str]:
        return {
            "kubeconfig": str(kubeconfig),
            "controllers": ",".join(("*", *(f"-{name}" for name in _NOT_HERE))),
            "root-ca-file": str(self._folder / "ca.crt"),
            "service-account-private-key-file": str(self._folder / "server.key"),
            "leader-elect": "false",
            "secure-port": "0",
        }

    def check(self) -> None:
        """Raises RuntimeError when a child has died."""
        for child in self._children:
            if child.poll() is not None:
                raise RuntimeError(f"{child.args!r} exited with {child.returncode}")

    def stop(self) -> None:
        """End all, etcd last."""
        for child in reversed(self._children):
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(5)
            child.kill()
            child.wait()


def _die_with_parent() -> None:
    set_death_signal(signal.SIGKILL)


async def _wait_until_ready(control_plane: ControlPlane) -> None:
    """Until /readyz says ok. The certificate is not checked: nothing is told, only a port is watched."""
    url = f"https://127.0.0.1:{control_plane.port}/readyz"
    async with aiohttp.ClientSession() as session, asyncio.timeout(_PATIENCE):
        while True:
            control_plane.check()
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url, ssl=False) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(_POLL)


async def _forward(listener: socket.socket, port: int) -> asyncio.Server:
    """Pass every connection on to a loopback port."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    return await asyncio.start_server(connected, sock=listener)


async def _serve(assets: Path, folder: Path, service_cidrs: str, fds: Sequence[int]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    control_plane = ControlPlane(assets, folder, service_cidrs)
    try:
        token = control_plane.start()
        await _wait_until_ready(control_plane)
        control_plane.start_controllers(token)
        listeners = [socket.socket(fileno=fd) for fd in fds]
        host, port = listeners[0].getsockname()[:2]
        for listener in listeners:
            listener.setblocking(False)
            await _forward(listener, control_plane.port)
        write_kubeconfig(folder / "kubeconfig", f"https://{host}:{port}", token, folder / "ca.crt")
        write_private(folder / "ready", b"")
        await stop.wait()
    finally:
        control_plane.stop()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True, help="folder with kube-apiserver")
    parser.add_argument("--service-cidr", required=True)
    parser.add_argument("--fd", type=int, action="append", required=True)
    args = parser.parse_args()
    try:
        asyncio.run(_serve(args.assets, args.state_dir, args.service_cidr, args.fd))
    except TimeoutError:
        raise SystemExit(f"lab.kube_apiserver: not ready after {_PATIENCE:.0f} s") from None
    except (OSError, RuntimeError) as error:
        raise SystemExit(f"lab.kube_apiserver: {error}") from None


if __name__ == "__main__":
    main()
