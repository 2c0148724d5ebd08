"""Clients as tools use them, with nothing set but what a sandbox has: variables of proxies and authorities."""

from __future__ import annotations

import base64
import functools
import http.server
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from outside import NAME, Outside, rule

from runner.wire import egress as wire

OPAQUE, OPEN, DENIED = NAME, "other.example.test", "denied.example.test"
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy")
KEY = "rnr-" + "k" * 32
VALUE = b"sk-live-0123456789abcdef"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files, over HTTP/1.1."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Place:
    """A folder served over TLS under two names, opaque and inspected; a sandbox's environment; a program to run."""

    def __init__(self, outside: Outside, folder: Path) -> None:
        self.outside = outside
        self.files = folder / "files"
        self.files.mkdir()
        (self.files / "hello.txt").write_text("hello from outside")
        handler = functools.partial(Quiet, directory=str(self.files))
        self.web = outside.web(outside.tls(OPAQUE, OPEN), handler=handler)  # type: ignore[arg-type]
        self.plain = outside.web(handler=handler)  # type: ignore[arg-type]
        port = outside.open(
            rule("opaque", OPAQUE, port=self.web.port),
            rule("inspected", OPEN, port=self.web.port, inspect=True),
            rule("plain", OPAQUE, port=self.plain.port, protocol="http"),
        )
        bundle = folder / "bundle.pem"
        bundle.write_bytes(outside.bundle())
        proxy = f"http://127.0.0.1:{port}"
        self.folder = folder
        self.proxy = f"127.0.0.1:{port}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            **dict.fromkeys(
                ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"), proxy
            ),
            **{
                name: str(bundle)
                for name in (
                    *("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"),
                    *("NODE_EXTRA_CA_CERTS", "AWS_CA_BUNDLE"),
                )
            },
            "NODE_USE_ENV_PROXY": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_TERMINAL_PROMPT": "0",
        }

    def url(self, host: str, path: str = "hello.txt") -> str:
        """Where a file is."""
        return f"https://{host}:{self.web.port}/{path}"

    def run(self, *command: str, fails: bool = False) -> str:
        """What a program prints, on both of its outputs."""
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def told(self) -> tuple[list[tuple[str, str, int]], list[str]]:
        """What was allowed (host, method, status), and which hosts were refused."""
        self.outside.wait(lambda: not self.outside.proxy._connections)
        asked = {request.id: request for request in self.outside.gate.asked}
        ended = [(asked[each.id].host, asked[each.id].method, each.status) for each in self.outside.gate.of(wire.Ended)]
        return ended, [each.request.host for each in self.outside.gate.of(wire.Refused)]


@pytest.fixture
def place(outside: Outside, tmp_path: Path) -> Place:
    """A place with files."""
    return Place(outside, tmp_path)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed here")


@needs("curl")
def test_curl(place: Place) -> None:
    for host in (OPAQUE, OPEN):
        assert place.run("curl", "-sS", place.url(host)) == "hello from outside"
    assert place.run("curl", "-sS", f"http://{OPAQUE}:{place.plain.port}/hello.txt") == "hello from outside"
    assert "403" in place.run("curl", "-sS", place.url(DENIED), fails=True)
    taught = place.run("curl", "-sS", f"http://{DENIED}:{place.plain.port}/x")
    assert 'host = \\"denied.example.test\\"' in taught
    assert place.told() == (
        [(OPAQUE, "", 0), (OPEN, "GET", 200), (OPAQUE, "GET", 200)],
        [DENIED, DENIED],
    )


@needs("curl")
def test_curl_posts_what_waits_to_be_asked_for(outside: Outside, place: Place) -> None:
    """A long body with `Expect: 100-continue`, in chunks, and up as a file."""
    web = outside.web(outside.tls()).quiet()
    port = outside.open(rule(port=web.port, inspect=True), call="c2")
    big = place.folder / "big"
    big.write_bytes(b"0123456789" * 300_000)
    url = f"https://{NAME}:{web.port}/up"
    proxied = ("curl", "-sS", "-x", f"http://127.0.0.1:{port}", "-H", "Expect: 100-continue")
    place.run(*proxied, "--data-binary", f"@{big}", url)
    place.run(*proxied, "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{big}", url)
    place.run(*proxied, "-T", str(big), url)
    assert [len(seen["body"]) for seen in web.seen] == [3_000_000] * 3
    assert [seen["method"] for seen in web.seen] == ["POST", "POST", "PUT"]


@needs("wget")
def test_wget(place: Place) -> None:
    bundle = place.environment["SSL_CERT_FILE"]
    for host in (OPAQUE, OPEN):
        said = place.run("wget", "-q", "-O", "-", f"--ca-certificate={bundle}", place.url(host))
        assert said == "hello from outside"
    place.run("wget", "-q", "-O", "-", "--tries=1", f"--ca-certificate={bundle}", place.url(DENIED), fails=True)
    assert place.told() == ([(OPAQUE, "", 0), (OPEN, "GET", 200)], [DENIED])


@needs("git")
def test_git(place: Place) -> None:
    source, bare = place.folder / "source", place.files / "repo.git"
    source.mkdir()
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.test", "-c", "init.defaultBranch=main")
    place.run("git", *identity, "init", "-q", str(source))
    (source / "file").write_text("content")
    place.run("git", "-C", str(source), "add", "file")
    place.run("git", *identity, "-C", str(source), "commit", "-q", "-m", "one")
    place.run("git", "clone", "-q", "--bare", str(source), str(bare))
    place.run("git", "-C", str(bare), "update-server-info")
    for host in (OPAQUE, OPEN):
        place.run("git", "clone", "-q", place.url(host, "repo.git"), host)
        assert (place.folder / host / "file").read_text() == "content"
    assert "403" in place.run("git", "clone", "-q", place.url(DENIED, "repo.git"), "denied", fails=True)
    ended, refused = place.told()
    assert {host for host, _, _ in ended} == {OPAQUE, OPEN}
    assert set(refused) == {DENIED}


def test_pip(place: Place) -> None:
    """An index of one wheel."""
    index = place.files / "simple" / "some-thing"
    index.mkdir(parents=True)
    wheel = index / "some_thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_thing.py", "x = 1\n")
        archive.writestr("some_thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-thing\nVersion: 1.0\n")
        archive.writestr("some_thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nTag: py3-none-any\n")
        archive.writestr("some_thing-1.0.dist-info/RECORD", "")
    (index / "index.html").write_text(
        f'<!DOCTYPE html><html><body><a href="{wheel.name}">{wheel.name}</a></body></html>'
    )
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--retries", "0")
    for host in (OPAQUE, OPEN):
        place.run(*pip, "-d", host, "--index-url", place.url(host, "simple/"), "some-thing")
        assert (place.folder / host / wheel.name).read_bytes() == wheel.read_bytes()
    place.run(*pip, "-d", "no", "--index-url", place.url(DENIED, "simple/"), "some-thing", fails=True)
    assert {host for host, _, _ in place.told()[0]} == {OPAQUE, OPEN}


@pytest.mark.parametrize("library", ["requests", "httpx", "urllib"])
def test_python_libraries(place: Place, library: str) -> None:
    ask = {
        "requests": "import requests, sys; print(requests.get(sys.argv[1], timeout=20).text)",
        "httpx": "import httpx, sys; print(httpx.get(sys.argv[1], timeout=20).text)",
        "urllib": "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())",
    }[library]
    if library != "urllib":
        pytest.importorskip(library)
    for host in (OPAQUE, OPEN):
        assert place.run(sys.executable, "-c", ask, place.url(host)).strip() == "hello from outside"
    assert "403" in place.run(sys.executable, "-c", ask, place.url(DENIED), fails=True)
    assert place.told() == ([(OPAQUE, "", 0), (OPEN, "GET", 200)], [DENIED])


@needs("openssl")
def test_openssl(place: Place) -> None:
    """It asks with HTTP/1.0 and without Host."""
    bundle = place.environment["SSL_CERT_FILE"]
    for host, port in ((OPAQUE, place.web.port), (OPEN, place.web.port)):
        command = ("openssl", "s_client", "-proxy", place.proxy, "-connect", f"{host}:{port}", "-servername", host)
        said = place.run(*command, "-CAfile", bundle, "-verify_return_error", "-verify_hostname", host, "-brief")
        assert "Verification: OK" in said
    place.run(*("openssl", "s_client", "-proxy", place.proxy, "-connect", f"{DENIED}:443"), fails=True)


FETCH = """
fetch(process.argv[1]).then(r => r.text()).then(t => console.log(t), e => { console.error(e); process.exit(1) })
"""
# Before its version 24, Node leaves proxies to its programs: this is what their agents do.
CONNECT = """
const http = require('http'), tls = require('tls');
const url = new URL(process.argv[1]), proxy = new URL(process.env.https_proxy);
const fail = e => { console.error(e); process.exit(1) };
http.request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: url.host,
               headers: { host: url.host } })
  .on('connect', (answer, socket) => {
    if (answer.statusCode !== 200) fail(answer.statusCode);
    const secure = tls.connect({ socket, servername: url.hostname, ALPNProtocols: ['http/1.1'] });
    http.get({ createConnection: () => secure, path: url.pathname, headers: { host: url.host } },
      r => r.on('data', d => process.stdout.write(d))).on('error', fail);
  }).on('error', fail).end();
"""


@needs("node")
def test_node(place: Place) -> None:
    version = place.run("node", "-p", "process.versions.node").strip().split(".")
    ask = FETCH if int(version[0]) >= 24 else CONNECT
    for host in (OPAQUE, OPEN):
        assert place.run("node", "-e", ask, place.url(host)).strip() == "hello from outside"
    place.run("node", "-e", ask, place.url(DENIED), fails=True)
    assert place.told() == ([(OPAQUE, "", 0), (OPEN, "GET", 200)], [DENIED])


@needs("git")
@needs("curl")
def test_a_credential_for_git_and_curl(outside: Outside, place: Place) -> None:
    """What holds the placeholder speaks basic authentication, and the destination sees the credential."""
    web = outside.web(outside.tls()).quiet()
    held = wire.Injection(name="forge", placeholder=KEY, value=VALUE, rules=("api",), places=("basic",))
    port = outside.open(rule(port=web.port, inspect=True), injections=(held,), call="c2")
    proxy = f"http://127.0.0.1:{port}"
    url = f"https://{NAME}:{web.port}/x"
    assert VALUE.decode() not in place.run("curl", "-sS", "-v", "-x", proxy, "-u", f"user:{KEY}", url)
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    place.run(
        "git", "-c", f"http.proxy={proxy}", "-c", f"http.extraHeader=Authorization: Basic {basic}", "ls-remote", url
    )
    for each in web.seen:
        coded = dict(each["headers"])["authorization"].removeprefix("Basic ")
        assert base64.b64decode(coded) == b"user:" + VALUE
    assert len(web.seen) >= 2
