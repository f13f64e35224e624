"""A service account's token that ends while another one lies in its file, as kubelet has it: on a real server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from felix_py.datastore import access
from felix_py.datastore.access import Identity, Plain
from felix_py.datastore.client import Api, ApiError
from felix_py.datastore.cluster import Cluster
from felix_py.datastore.informer import Timing
from tests.conformance.conftest import ASSETS, Kubectl, until
from tests.support import waiting
from tests.support.bad_proxy import BadProxy, Mood
from tests.support.fakeapi import PATIENCE
from tests.support.manifests import ROOT

pytestmark = pytest.mark.skipif(not ASSETS, reason="the embedded server makes no tokens of service accounts")

RIGHTS = str(ROOT / "manifests" / "base" / "rbac.yaml")
QUICK = Timing(retry=(0.1, 1.0), lost=(0.1, 1.0))


def token(kubectl: Kubectl, bound_to: str) -> str:
    """A token that ends with a Secret (TokenRequest, ``spec.boundObjectRef``)."""
    kubectl("create", "secret", "generic", bound_to)
    bound = ("--bound-object-kind=Secret", f"--bound-object-name={bound_to}")
    return kubectl("create", "token", "felix-py", *bound).strip()


async def test_an_agent_goes_on_with_the_new_one(cluster: Kubectl, tmp_path: Path) -> None:
    system = replace(cluster, namespace="kube-system")
    system("apply", "-f", RIGHTS)
    file = tmp_path / "token"
    file.write_text(token(system, "rotated-1"))
    found = access.of_kubeconfig(cluster.kubeconfig, None)
    authority = found._identity.authority

    def is_refused(value: str) -> bool:
        old = Api(lambda: Plain(Identity(found.server, authority=authority, token=value)))
        try:
            with old.request("GET", "/api/v1/namespaces") as answer:
                answer.read()
        except ApiError as error:
            return error.status == 401
        finally:
            old.close()
        return False

    with BadProxy(found.server, found._context) as proxy:
        api = Api(lambda: Plain(Identity(proxy.url, token_file=file)))
        agent = Cluster(api, node_name="none", timing=QUICK)
        agent.start()
        try:
            async with asyncio.timeout(PATIENCE):
                await agent.in_sync()
            first = file.read_text()
            file.write_text(token(system, "rotated-2"))
            await asyncio.to_thread(system, "delete", "secret", "rotated-1")
            # A token that was good a moment ago is good for ten seconds more.
            await asyncio.to_thread(until, lambda: is_refused(first), PATIENCE)
            proxy.become(Mood.RESET)  # an open watch is not asked for a token again
            proxy.become(Mood.WELL)
            await asyncio.to_thread(cluster, "create", "namespace", "after-rotation")
            await waiting.until(lambda: ("", "after-rotation") in agent.store.namespaces.records, PATIENCE)
        finally:
            await agent.stop()
            cluster.run("delete", "namespace", "after-rotation", "--wait=false")
            system.run("delete", "secret", "rotated-2")
            system.run("delete", "-f", RIGHTS)
