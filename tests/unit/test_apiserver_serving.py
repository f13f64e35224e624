"""The server in this process: what cannot be seen, or not soon enough, from outside."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from lab.apiserver import ApiServer, Options, write_kubeconfig
from lab.apiserver.columns import human_duration

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[ApiServer, aiohttp.ClientSession]]:
    """A server and a client of it."""
    async with ApiServer(Options(**options)) as server, aiohttp.ClientSession(server.url) as session:
        yield server, session


async def create(session: aiohttp.ClientSession, name: str) -> int:
    async with session.post(CONFIG_MAPS, json={"metadata": {"name": name}}) as answer:
        assert answer.status == 201, await answer.text()
        return int((await answer.json())["metadata"]["resourceVersion"])


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    line = await asyncio.wait_for(answer.content.readline(), 5)
    event: dict[str, Any] = json.loads(line)
    return event


async def test_bookmarks_come_at_the_interval() -> None:
    async with serving(bookmark_interval=0.05) as (_, session):
        version = await create(session, "a")
        parameters = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": str(version)}
        async with session.get(CONFIG_MAPS, params=parameters) as answer:
            first = await next_event(answer)
            assert (first["type"], first["object"]["kind"]) == ("BOOKMARK", "ConfigMap")
            assert first["object"]["metadata"]["resourceVersion"] == str(version)
            async with session.post("/api/v1/namespaces", json={"metadata": {"name": "other"}}):
                pass
            while int((await next_event(answer))["object"]["metadata"]["resourceVersion"]) <= version:
                pass  # another resource changed: the bookmark moves on all the same


async def test_a_watch_that_fell_behind_the_log_is_expired() -> None:
    async with serving(log_size=4) as (_, session):
        old = await create(session, "a")
        for index in range(6):
            await create(session, f"b{index}")
        async with session.get(CONFIG_MAPS, params={"watch": "1", "resourceVersion": str(old)}) as answer:
            event = await next_event(answer)
            assert event["type"] == "ERROR"
            assert event["object"]["code"] == 410
            assert await answer.content.readline() == b""
        page = {"limit": "1", "resourceVersion": str(old), "resourceVersionMatch": "Exact"}
        async with session.get(CONFIG_MAPS, params=page) as answer:
            assert answer.status == 410


async def test_stopping_ends_watches_cleanly() -> None:
    async with aiohttp.ClientSession() as session:
        server = ApiServer()
        async with server:
            answer = await session.get(server.url + CONFIG_MAPS, params={"watch": "1"})
        async with asyncio.timeout(5):
            assert await answer.read() == b""


async def test_versions_never_go_back_over_a_restart() -> None:
    versions = []
    for _ in range(2):
        async with ApiServer() as server, aiohttp.ClientSession(server.url) as session:
            versions += [await create(session, "a"), await create(session, "b")]
    assert versions == sorted(versions)


async def test_a_version_of_the_past_life_is_expired() -> None:
    async with ApiServer() as server, aiohttp.ClientSession(server.url) as session:
        before = await create(session, "a")
    watch = {"watch": "1", "resourceVersion": str(before)}
    async with (
        ApiServer() as server,
        aiohttp.ClientSession(server.url) as session,
        session.get(CONFIG_MAPS, params=watch) as answer,
    ):
        assert (await next_event(answer))["object"]["reason"] == "Expired"


async def test_one_server_on_several_sockets() -> None:
    async with serving() as (server, session):
        inherited = socket.create_server(("127.0.0.1", 0))
        urls = [await server.serve_on(inherited), await server.listen("::1", 0)]
        await create(session, "a")
        for url in urls:
            async with session.get(url + CONFIG_MAPS + "/a") as answer:
                assert answer.status == 200


async def test_the_token_is_asked_for() -> None:
    async with serving(token="secret") as (_, session):

        async def status(path: str, token: str) -> int:
            async with session.get(path, headers={"Authorization": f"Bearer {token}"}) as answer:
                return answer.status

        assert await status(CONFIG_MAPS, "secret") == 200
        assert await status(CONFIG_MAPS, "wrong") == 401
        assert await status("/readyz", "wrong") == 200


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/v1/nothings", 404),
        ("GET", "/apis/no.such.group/v1/things", 404),
        ("GET", "/api/v1/nodes/n/unknown", 404),
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/api/v1/pods/without-a-namespace", 404),
        ("POST", "/api/v1/pods", 405),
        ("PUT", CONFIG_MAPS, 405),
        ("DELETE", "/api/v1/nodes/n/status", 405),
        ("GET", "/nowhere", 404),
        ("GET", CONFIG_MAPS + "?limit=many", 400),
        ("GET", CONFIG_MAPS + "?resourceVersion=x", 422),
        ("GET", CONFIG_MAPS + f"?resourceVersion={2**62}", 504),
    ],
)
async def test_errors_are_status_documents(method: str, path: str, code: int) -> None:
    async with serving() as (_, session), session.request(method, path) as answer:
        document = await answer.json()
        assert (answer.status, document["kind"], document["code"]) == (code, "Status", code)


@pytest.mark.parametrize(("content_type", "code"), [("text/plain", 415), ("application/yaml", 201)])
async def test_content_types(content_type: str, code: int) -> None:
    body = "metadata:\n  name: a\ndata:\n  when: 2026-01-01\n"
    head = {"Content-Type": content_type}
    async with serving() as (_, session), session.post(CONFIG_MAPS, data=body, headers=head) as answer:
        assert answer.status == code
        if code == 201:
            assert (await answer.json())["data"] == {"when": "2026-01-01"}


async def test_ten_thousand_pods_are_listed_fast() -> None:
    """Bytes are stored ready to send; typical is a tenth of a second of CPU, the bound is generous."""
    async with serving() as (server, session):
        from lab.apiserver.builtin import PODS

        for index in range(10_000):
            name = f"p{index}"
            document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "a": "x" * 3000}}
            server.instance.store.put(PODS, ("default", name), document)
        before = time.process_time()  # of both ends, whatever else the machine does
        async with session.get("/api/v1/pods") as answer:
            assert (await answer.read()).count(b'"resourceVersion"') == 10_001
        assert time.process_time() - before < 2


def test_kubeconfig(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text("PEM")
    path = tmp_path / "kubeconfig"
    write_kubeconfig(path, "https://10.0.0.1:6443", "secret", ca, "lab")
    document = yaml.safe_load(path.read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://10.0.0.1:6443"
    assert document["users"][0]["user"] == {"token": "secret"}
    assert document["current-context"] == "lab"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (599, "9m59s"), (600, "10m"), (10_799, "179m"),
     (10_800, "3h"), (12_000, "3h20m"), (28_800, "8h"), (172_799, "47h"), (172_800, "2d"), (180_000, "2d2h"),
     (864_000, "10d"), (63_072_000, "2y"), (-5, "<invalid>")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text
