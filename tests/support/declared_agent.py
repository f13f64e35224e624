"""The real agent, sidecar and ExaBGP in the current namespace, and a stand-in for the API server."""

from __future__ import annotations

import base64
import json
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from felix_py.observe import ask
from tests.support.agent_process import NODE, AgentProcess
from tests.support.bgp import TOR_ASN, Sidecar
from tests.support.fakeapi import BGP_CONFIGURATIONS, BGP_FILTERS, BGP_PEERS, NODE_STATUSES, SECRETS, FakeApi

SECRET = "felix-py-bgp-passwords"


class DeclaredAgent(AgentProcess):
    """With what it is told, and what it says of itself."""

    sidecar: Sidecar

    def declare(self, path: str, name: str, **spec: Any) -> None:
        self.api.put(path, {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": spec})

    def peer(self, index: int, **spec: Any) -> None:
        fields = {"peerIP": f"10.{9 + index}.0.2", "asNumber": TOR_ASN, "sourceAddress": "None"} | spec
        self.declare(BGP_PEERS, f"tor{index}", **fields)

    def secret(self, **passwords: str) -> None:
        metadata = {"name": SECRET, "namespace": "kube-system", "uid": "s"}
        data = {key: base64.b64encode(value.encode()).decode() for key, value in passwords.items()}
        self.api.put(SECRETS, {"metadata": metadata, "data": data})

    def status(self) -> dict[str, Any]:
        with closing(ask.connection(str(self.run_dir / "agent.sock"), 10)) as asked:
            asked.request("GET", "/status")
            found: dict[str, Any] = json.loads(asked.getresponse().read())
        return found

    def notices(self) -> dict[str, str]:
        return {one["subject"]: one["text"] for one in self.status()["notices"] if one["kind"] == "bgp-resources"}

    def told(self) -> dict[str, Any]:
        with self.api.changed:
            found: dict[str, Any] = self.api.objects.get((NODE_STATUSES, "", NODE), {}).get("status", {})
        return found

    def restart(self) -> None:
        self.stop(signal.SIGKILL)
        self.start()
        self.wait_ready()


@contextmanager
def declared_agent(folder: Path, **options: Any) -> Iterator[DeclaredAgent]:
    """Not started yet, but its sidecar is. ``options``: of AgentProcess."""
    with FakeApi() as api:
        for path in (BGP_CONFIGURATIONS, BGP_PEERS, BGP_FILTERS, NODE_STATUSES):
            api.install(path)
        api.serve(SECRETS)
        agent = DeclaredAgent(folder, api, **options)
        with Sidecar(agent.run_dir / "bgp") as agent.sidecar:
            try:
                yield agent
            finally:
                agent.close()
