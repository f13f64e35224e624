"""Finding the API server, proving who we are, and reading its refusals."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from kubernetes.config import incluster_config

from felix_py.config import ConfigError
from felix_py.datastore import access
from felix_py.datastore.access import NotPlain
from felix_py.datastore.client import Api, ApiError, Unreachable, connect
from tests.support import fakeapi, faults
from tests.support.fakeapi import PODS, FakeApi, pod
from tests.support.watching import configuration, watching

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


def kubeconfig(path: Path, server: str, user: dict[str, str] | None = None, /, **cluster: object) -> Path:
    """Write a kubeconfig with one context, ``here``."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user or {}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def get(api: Api, path: str = PODS, **options: float) -> bytes:
    with api.request("GET", path, **options) as answer:  # type: ignore[arg-type]
        return answer.read()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


# --- configuration ---------------------------------------------------------------------------------------------


def test_kubeconfig(tmp_path: Path) -> None:
    with FakeApi(token="secret") as server:
        api = connect(kubeconfig(tmp_path / "config", server.url, {"token": "secret"}))
        assert api.server == server.url
        assert b'"items"' in get(api)
        api.close()


def test_missing_kubeconfig_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--kubeconfig .*/none: no such file"):
        connect(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    ["", "{", "just text", "[]", "current-context: x", "a: [", "clusters: 5\ncontexts: 5\ncurrent-context: 5"],
)
def test_malformed_kubeconfig_says_so(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"--kubeconfig .*config: .*; compare it with `kubectl config view`"):
        connect(path)


def test_malformed_kubeconfig_does_not_give_the_token_away(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1")
    content = yaml.safe_load(path.read_text())
    content["users"] = [{"name": "u", "token": "very-secret"}]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="Expected key user") as caught:
        connect(path)
    assert "very-secret" not in str(caught.value)


def test_unknown_context_is_named(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1")
    with pytest.raises(ConfigError, match="elsewhere"):
        connect(path, "elsewhere")


def test_missing_certificate_authority_is_named(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1", **{"certificate-authority": "no-such.crt"})
    with pytest.raises(ConfigError, match=r"no-such\.crt"):
        connect(path)


def test_server_that_is_no_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not an http:// or https:// URL"):
        connect(kubeconfig(tmp_path / "config", "tcp://somewhere"))


def test_outside_a_pod_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=r"not inside a pod.*give --kubeconfig"):
        connect()


PEM = base64.b64encode(b"no certificate").decode()


@pytest.mark.parametrize(
    ("user", "cluster"),
    [
        ({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "get-token", "args": []}}, {}),
        ({"auth-provider": {"name": "oidc"}}, {}),
        ({"username": "u", "password": "p"}, {}),
        ({"token": 5}, {}),
        ({"tokenFile": "/no/such/file"}, {}),
        ({"client-certificate-data": PEM, "client-key-data": PEM}, {}),
        ({"client-certificate-data": "é"}, {}),
        ({}, {"proxy-url": "socks5://127.0.0.1:1"}),
        ({}, {"certificate-authority": "no-such.crt"}),
        ({}, {"certificate-authority-data": PEM}),
    ],
)
def test_what_is_not_plain_is_left_to_the_official_client(
    tmp_path: Path, user: dict[str, object], cluster: dict[str, object]
) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1", user, **cluster)  # type: ignore[arg-type]
    with pytest.raises(NotPlain):
        access.of_kubeconfig(path, None)


def test_what_the_official_client_reads_is_used_as_it_reads_it(tmp_path: Path) -> None:
    with FakeApi(token="from-a-program") as server:
        credential = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": "from-a-program"},
        }
        command = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "echo",
            "args": [json.dumps(credential)],
            "interactiveMode": "Never",
        }
        api = connect(kubeconfig(tmp_path / "config", server.url, {"exec": command}))  # type: ignore[dict-item]
        assert b'"items"' in get(api)
        api.close()


def test_a_proxy_in_the_environment_is_the_official_client_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1")
    access.of_kubeconfig(path, None)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(NotPlain):
        access.of_kubeconfig(path, None)


def test_an_agent_that_needs_nothing_else_does_not_load_the_official_client(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:1", {"token": "t"})
    code = (
        "import sys, pathlib; from felix_py.datastore.client import connect;"
        "import felix_py.agent.main;"
        f"connect(pathlib.Path({str(path)!r})); assert 'kubernetes' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- identity --------------------------------------------------------------------------------------------------


def test_token_file_of_a_kubeconfig_is_read_again_when_it_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with FakeApi(token="first") as server:
        api = connect(kubeconfig(tmp_path / "config", server.url, {"tokenFile": str(token)}))
        get(api)
        server.token = "second"
        token.write_text("second\n")
        with pytest.raises(ApiError, match="401 Unauthorized"):
            get(api)
        get(api)
        api.close()


@pytest.mark.parametrize(
    "lose", [Path.unlink, lambda file: file.write_bytes(b"\xff"), lambda file: file.write_text("")]
)
def test_token_that_cannot_be_read_now_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lose: Callable[[Path], object]
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with FakeApi(token="first") as server:
        api = connect(kubeconfig(tmp_path / "config", server.url, {"tokenFile": str(token)}))
        monkeypatch.setattr(access, "_TOKEN_AGE", -1.0)  # read it for each request
        lose(token)
        get(api)
        server.token = "second"
        token.write_text("second\n")
        get(api)
        api.close()


def test_credentials_that_cannot_be_read_now_leave_the_old_ones(tmp_path: Path) -> None:
    with FakeApi(token="secret") as server:
        path = kubeconfig(tmp_path / "config", server.url, {"token": "secret"})
        api = connect(path)
        path.unlink()
        api.renew()
        get(api)
        api.close()


def test_renewing_does_not_disturb_an_answer_that_is_being_read() -> None:
    with FakeApi() as server:
        server.put(PODS, pod("a"))
        api = Api(lambda: configuration(server))
        with api.request("GET", PODS) as answer:
            api.renew()
            assert b'"name": "a"' in answer.read()
        api.close()


@pytest.fixture
def authorities(tmp_path: Path) -> list[tuple[Path, tuple[str, str]]]:
    """Two authorities, each with a server certificate for 127.0.0.1: (CA file, (certificate, key))."""
    made = []
    for name in ("old", "new"):
        ca, key, cert = (tmp_path / f"{name}-{part}" for part in ("ca.crt", "key", "crt"))
        authority = "-x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=CA"
        openssl(f"req {authority} -keyout {ca}.key -out {ca} -addext keyUsage=critical,keyCertSign")
        openssl(f"req -newkey rsa:2048 -nodes -subj /CN=server -keyout {key} -out {cert}.csr")
        extensions = tmp_path / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
        openssl(f"x509 -req -in {cert}.csr -CA {ca} -CAkey {ca}.key -days 2 -extfile {extensions} -out {cert}")
        made.append((ca, (str(cert), str(key))))
    return made


def openssl(words: str) -> None:
    subprocess.run(["openssl", *words.split()], check=True, capture_output=True)


@needs_openssl
def test_tls_verifies_the_server(tmp_path: Path, authorities: list[tuple[Path, tuple[str, str]]]) -> None:
    (old, certificate), (new, _) = authorities
    with FakeApi(certificate=certificate) as server:
        trusting = connect(kubeconfig(tmp_path / "good", server.url, **{"certificate-authority": str(old)}))
        get(trusting)
        trusting.close()
        doubting = connect(kubeconfig(tmp_path / "bad", server.url, **{"certificate-authority": str(new)}))
        with pytest.raises(Unreachable, match="certificate verify failed"):
            get(doubting)
        doubting.close()


@needs_openssl
@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_who_we_are_may_be_told_by_a_certificate(
    tmp_path: Path, authorities: list[tuple[Path, tuple[str, str]]]
) -> None:
    (ca, (certificate, key)), _ = authorities
    data = {
        "client-certificate-data": base64.b64encode(Path(certificate).read_bytes()).decode(),
        "client-key-data": base64.b64encode(Path(key).read_bytes()).decode(),
    }
    with FakeApi(certificate=(certificate, key), clients=str(ca)) as server:
        named = {"certificate-authority": ca.name}  # beside the kubeconfig
        for user in (data, {"client-certificate": certificate, "client-key": Path(key).name}):
            path = kubeconfig(tmp_path / "config", server.url, user, **named)
            access.of_kubeconfig(path, None)
            api = connect(path)
            get(api)
            api.close()
        nobody = connect(kubeconfig(tmp_path / "config", server.url, **named))
        with pytest.raises(Unreachable):
            get(nobody)
        nobody.close()
        unsafe = {"insecure-skip-tls-verify": True, "tls-server-name": "elsewhere"}
        trusting = connect(kubeconfig(tmp_path / "config", server.url, data, **unsafe))
        get(trusting)
        trusting.close()


@needs_openssl
def test_service_account_of_a_pod_and_its_token_rotation(
    tmp_path: Path, authorities: list[tuple[Path, tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (ca, certificate), _ = authorities
    token = tmp_path / "token"
    token.write_text("first\n")
    with FakeApi(token="first", certificate=certificate) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        (tmp_path / "ca.crt").write_text(ca.read_text())
        monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path)
        api = connect()
        get(api)
        server.token = "second"
        token.write_text("second\n")
        with pytest.raises(ApiError, match="401"):
            get(api)
        get(api)
        token.write_text("")
        api.renew()
        get(api)
        api.close()


def test_pod_without_a_token_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(access, "SERVICE_ACCOUNT", tmp_path / "none")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="this pod's service account: Service token file does not exist"):
        connect()


@needs_openssl
async def test_ca_rotation_under_a_running_watch(
    tmp_path: Path, authorities: list[tuple[Path, tuple[str, str]]]
) -> None:
    """The CA is given in the kubeconfig itself; the official client would go on with the one it read first."""
    (old, old_certificate), (new, new_certificate) = authorities
    path = tmp_path / "config"

    def trust(ca: Path, server: str) -> None:
        data = base64.b64encode(ca.read_bytes()).decode()
        kubeconfig(path, server, **{"certificate-authority-data": data})

    with FakeApi(certificate=old_certificate) as server:
        trust(old, server.url)
        async with watching(server, client=connect(path)) as watch:
            await watch.until_listed()
            server.refuse()
            server.certificate = new_certificate
            server.put(PODS, pod("a"))
            server.listen()
            await watch.clock.until_waits(3)
            assert watch.names() == set(), "a server that cannot prove itself is not believed"
            trust(new, server.url)
            await watch.until_names("a")


# --- refusals --------------------------------------------------------------------------------------------------


def test_refusal_carries_status_reason_and_message() -> None:
    with FakeApi() as server:
        server.fault("list", faults.refuse(403, "Forbidden", "pods is forbidden", retry_after="7"))
        api = Api(lambda: configuration(server))
        with pytest.raises(ApiError, match="403 Forbidden: pods is forbidden") as caught:
            get(api)
        assert (caught.value.status, caught.value.reason, caught.value.retry_after) == (403, "Forbidden", 7.0)
        api.close()


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [("5", 5.0), ("", 0.0), ("-3", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0), ("9" * 9, 600.0)],
)
def test_retry_after_is_seconds_and_bounded(wish: str, seconds: float) -> None:
    with FakeApi() as server:
        server.fault("list", faults.refuse(503, retry_after=wish))
        api = Api(lambda: configuration(server))
        with pytest.raises(ApiError) as caught:
            get(api)
        assert caught.value.retry_after == seconds
        api.close()


def test_refusal_by_a_proxy_in_between_has_its_words() -> None:
    def gateway(exchange: fakeapi.Exchange) -> bool:
        exchange._handler.send_response(502)
        exchange._handler.send_header("Content-Length", "18")
        exchange._handler.end_headers()
        exchange._handler.wfile.write(b"<h1>no upstream</h")
        return True

    with FakeApi() as server:
        server.fault("list", gateway)
        api = Api(lambda: configuration(server))
        with pytest.raises(ApiError, match="502: <h1>no upstream"):
            get(api)
        api.close()


def test_refused_connection_names_the_server() -> None:
    with FakeApi() as server:
        api = Api(lambda: configuration(server))
        server.refuse()
        with pytest.raises(Unreachable, match=f"{server.url}.*refused"):
            get(api)
        server.listen()
        api.close()


def test_body_that_is_cut_off_is_no_answer() -> None:
    def cut(exchange: fakeapi.Exchange) -> bool:
        exchange._handler.send_response(200)
        exchange._handler.send_header("Content-Length", "100")
        exchange._handler.end_headers()
        exchange._handler.wfile.write(b"half")
        exchange.cut()
        return True

    with FakeApi() as server:
        server.fault("list", cut)
        api = Api(lambda: configuration(server))
        with pytest.raises(Unreachable):
            get(api)
        api.close()


def test_read_timeout() -> None:
    with FakeApi() as server:
        server.fault("list", faults.hang)
        api = Api(lambda: configuration(server))
        with pytest.raises(Unreachable, match="timed out"):
            get(api, read_timeout=0.05)
        api.close()
