"""What a bundle for others may not tell."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_py.diagnose.redact import HIDDEN, Redactor, is_sensitive, secrets_of

HARD = """s3cr"et\\wi'th ü/and+all"""


@pytest.mark.parametrize(
    "text",
    [
        f"plain {HARD} plain",
        json.dumps({"a": HARD}),
        json.dumps({"a": HARD}, ensure_ascii=False),
        "yaml: '" + HARD.replace("'", "''") + "'",
        f"https://h/?q={quote(HARD, safe='')}",
        f"data: {base64.b64encode(HARD.encode()).decode()}",
        f"data: {base64.b64encode(HARD.encode() + bytes([10])).decode()}",
    ],
)
def test_a_known_secret_is_hidden_in_every_form(text: str) -> None:
    clean = Redactor()
    clean.learn([HARD])
    told = clean(text)
    assert HIDDEN in told
    assert "s3cr" not in told
    assert base64.b64encode(HARD.encode()).decode()[:12] not in told


def test_of_a_secret_of_several_lines_each_is_one() -> None:
    clean = Redactor()
    clean.learn(["first-line\nsecond-line\n"])
    assert clean("a first-line\nb second-line") == f"a {HIDDEN}\nb {HIDDEN}"


PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\nabc\n-----END EC PRIVATE KEY-----"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"x\n{PEM}\ny", "MHcCAQEE"),
        (PEM[:45], "MHcCAQEE"),
        (f"token is {JWT} here", "c2ln"),
        ("Authorization: Bearer abcdefgh123", "abcdefgh"),
        ("authorization: Basic dXNlcjpwYXNz", "dXNlcj"),
        ("http_proxy=http://user:hunter22@proxy:3128", "hunter22"),
        ('  md5-password "hunter22";', "hunter22"),
        ("  md5-password hunter22;", "hunter22"),
        ("    password: hunter22", "hunter22"),
        ("password: 'hunter22 and more'", "and more"),
        ('{"bgpPassword": "hunt\\"er22", "x": 1}', "er22"),
        ("GITHUB_TOKEN=hunter22", "hunter22"),
        ("DB_PASSWD=hunter22 more", "hunter22"),
        ("client-key-data: aHVudGVyMjI=", "aHVudGVy"),
        ("clientSecret = hunter22", "hunter22"),
        ("passphrase:hunter22", "hunter22"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, secret: str) -> None:
    assert secret not in Redactor()(text)


@pytest.mark.parametrize(
    "text",
    [
        "passwordFile: /etc/felix-py/bgp-password",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-A FELIX-CI-aaaaaaaaaaaaaaaa -m set --match-set felix4-0123456789abcdef src -g FELIX-ALLOW",
        "10.1.0.0/24 via 192.0.2.1 dev eth0 proto 89",
        'felix_py_cni_seconds_count{command="ADD",result="ok"} 12.0',
        '"lastMinute": {"packets": 7}',
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor()(text) == text


def test_secrets_of_a_document() -> None:
    document = {
        "asNumber": 65000,
        "peers": [{"address": "192.0.2.1", "password": "one"}, {"passwordFile": "two"}],
        "users": [{"user": {"token": "three", "auth": {"deep": ["four", 55555]}}}],
    }
    assert sorted(secrets_of(document)) == ["55555", "four", "one", "three"]
    assert not is_sensitive("KUBERNETES_SERVICE_HOST")
    assert is_sensitive("AWS_SECRET_ACCESS_KEY")
    assert is_sensitive("SSH_KEY")


@given(
    st.text(min_size=4, max_size=30).filter(lambda text: len(text.strip()) >= 4 and "\n" not in text), st.text()
)
def test_no_known_secret_comes_through_whatever_surrounds_it(secret: str, around: str) -> None:
    clean = Redactor()
    clean.learn([secret])
    told = clean(f"{around}{secret}{around}")
    assert secret not in told.replace(HIDDEN, "\0")


@pytest.mark.parametrize(
    "piece", ["a", "token", "password=", "://", "eyJ", "-----BEGIN PRIVATE KEY", "x:y@", '"']
)
def test_long_texts_take_linear_time(piece: str) -> None:
    """A part has megabytes, and anybody may have written what is in it."""
    clean = Redactor()
    text = piece * (1_000_000 // len(piece))
    started = time.process_time()
    clean(text)
    assert time.process_time() - started < 20
