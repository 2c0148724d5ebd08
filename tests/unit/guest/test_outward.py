"""A tool's way out, in this process: what is taken for a URL, a header, a ref, and what is made of answers."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.destination import Malformed, absolute
from runner.guest import git, outward
from runner.guest.beneath import ToolError
from runner.guest.outward import check_headers, parse_url, refusal, request

SCHEMES = frozenset({"http", "https"})


@pytest.mark.parametrize(
    ("text", "shown", "port"),
    [
        ("https://api.example.com", "https://api.example.com/", 443),
        ("http://api.example.com:80/x", "http://api.example.com/x", 80),
        ("https://api.example.com:8443/a%20b?q=[1]&r={2}", "https://api.example.com:8443/a%20b?q=[1]&r={2}", 8443),
        ("https://[fd00::7]:4/", "https://[fd00::7]:4/", 4),
        ("https://a/b/..c/.d/...", "https://a/b/..c/.d/...", 443),
    ],
)
def test_urls_that_are_taken(text: str, shown: str, port: int) -> None:
    found = parse_url(text)
    assert (str(found), found.port) == (shown, port)


@pytest.mark.parametrize(
    "text",
    [
        *("", "api.example.com", "https:/api.example.com", "ftp://a/", "https://", "https:///x", "HTTPS://a/"),
        *(
            "https://A/",
            "https://a b/",
            "https://a/b c",
            "https://u@a/",
            "https://u:p@a/",
            "https://a/#f",
            "https://a\\b/",
        ),
        *("https://a/../b", "https://a/b/..", "https://a/./b", "https://a/%2e%2E/b", "https://a/.%2e", "https://a//b"),
        *(
            "https://a:0/",
            "https://a:70000/",
            "https://a:08/",
            "https://a/\r\nHost: b",
            "https://a/\u2028",
            "https://-a/",
        ),
        *("https://a..b/", "https://münchen.de/", "https://a/ü", "https://[::1/", "https://a/" + "x" * 4096),
    ],
)
def test_urls_with_another_reading_are_none(text: str) -> None:
    with pytest.raises(ToolError, match="url"):
        parse_url(text)


@given(st.from_regex(r"https?://[a-zA-Z0-9.\[\]:@-]{1,20}(/[a-z0-9./%?#&= ]{0,20})?", fullmatch=True))
def test_what_is_taken_means_the_same_to_egress(text: str) -> None:
    """Whatever this takes names the host and port that egress's own parser reads, or egress refuses it."""
    try:
        ours = parse_url(text)
    except ToolError:
        return
    try:
        theirs = absolute(text, SCHEMES)
    except Malformed:
        return
    assert (theirs.scheme, theirs.port) == (ours.scheme, ours.port)
    assert theirs.host in (ours.host, ours.host.strip("[]")) or ":" in theirs.host


@pytest.mark.parametrize(
    "name", ["Host", "content-length", "Transfer-Encoding", "Connection", "Proxy-Authorization", "TE"]
)
def test_headers_that_frame_are_not_the_callers(name: str) -> None:
    with pytest.raises(ToolError, match="frames"):
        check_headers({name: "x"})
    assert check_headers({f"X-{name}": "x"}) == {f"X-{name}": "x"}


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("a b", "x"), ("a:", "x"), ("a", "b\nc"), ("a", "\0"), ("a", "\u2028")]
)
def test_headers_are_one_line(name: str, value: str) -> None:
    with pytest.raises(ToolError, match="headers"):
        check_headers({name: value})


def test_a_refusal_is_told_in_the_words_of_egress() -> None:
    told = {
        "title": "refused by egress",
        "detail": "tool t has no rule",
        "part": "tool t",
        "next": "ask",
        "missing": "[[egress]]",
    }
    error = refusal(403, "egress", json.dumps(told).encode())
    assert error.code == "egress"
    assert str(error) == (
        "refused by egress: tool t has no rule (decided by tool t); ask\nthe rule that would allow it:\n[[egress]]"
    )
    for body in (b"", b"no json", b"[]", b'"x"', b'{"detail": 7}'):
        assert refusal(403, "budget", body).code == "budget"
    assert "no answer of egress" in str(refusal(500, "", b""))


BODIES = {
    "/plain": ({}, b"x" * 3000),
    "/gzip": ({"Content-Encoding": "gzip"}, gzip.compress(b"x" * 3000)),
    "/deflate": ({"Content-Encoding": "deflate"}, zlib.compress(b"x" * 3000)),
    "/lies": ({"Content-Encoding": "gzip"}, b"not gzip"),
    "/other": ({"Content-Encoding": "zstd"}, b"x"),
    "/refused": ({"X-Runner-Refused": "egress"}, b'{"detail": "no rule"}'),
}


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Stands for egress: plain HTTP in absolute form, and CONNECT, which it refuses."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        fields, content = BODIES["/" + self.path.rsplit("/", 1)[-1]]
        self._say(200, fields, content)

    def do_CONNECT(self) -> None:
        self._say(403, {"X-Runner-Refused": "egress"}, b'{"title": "refused", "detail": "no rule for it"}')

    def _say(self, status: int, fields: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["/plain", "/gzip", "/deflate"])
@pytest.mark.parametrize("most", [1, 2999, 3000, 3001])
def test_a_body_is_read_to_its_bound_and_no_further(proxy: Any, path: str, most: int) -> None:
    answer = request("GET", parse_url(f"http://a.example.test{path}"), headers={"X-A": "b"}, most=most)
    assert (answer.body, answer.cut) == (b"x" * min(most, 3000), most < 3000)
    ((target, fields),) = proxy.seen
    assert target == f"http://a.example.test{path}"
    assert (fields["Host"], fields["X-A"], fields["Accept-Encoding"]) == ("a.example.test", "b", "identity")


@pytest.mark.parametrize(("path", "code"), [("/lies", "coding"), ("/other", "coding"), ("/refused", "egress")])
def test_answers_that_are_none(proxy: Any, path: str, code: str) -> None:
    with pytest.raises(ToolError) as refused:
        request("GET", parse_url(f"http://a.example.test{path}"), headers={}, most=10)
    assert refused.value.code == code


def test_a_tunnel_that_is_refused_says_why(proxy: Any) -> None:
    with pytest.raises(ToolError, match="no rule for it"):
        request("GET", parse_url("https://a.example.test/"), headers={}, most=10)


def test_a_call_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("https_proxy", raising=False)
    for work in (lambda: outward.tunnel("a", 1), lambda: request("GET", parse_url("http://a/"), headers={}, most=1)):
        with pytest.raises(ToolError, match="this call has no network") as refused:
            work()
        assert refused.value.code == "no_network"


# --- git -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["main", "v1.2", "feature/x-1", "a@b", "release+1", "x_y"])
def test_names_of_branches(name: str) -> None:
    assert git.check_ref(name, "ref") == name


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "-x",
            "--upload-pack=id",
            ".a",
            "a..b",
            "a/",
            "a//b",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a@{1}",
            "a b",
            "a~1",
        ),
        *("a^", "a:b", "+a", "refs/heads/*", "a\n", "a\0", "a.", "@", "ü", "a" * 300),
    ],
)
def test_names_that_git_could_read_otherwise(name: str) -> None:
    with pytest.raises(ToolError, match="not the name of a branch or tag"):
        git.check_ref(name, "ref")


def test_a_credential_is_for_its_host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    url = parse_url("https://git.example.test:8443/x.git")
    monkeypatch.delenv("GIT_PASSWORD", raising=False)
    assert not [name for name in git.environment(url).values() if "extraHeader" in name]
    monkeypatch.setenv("GIT_PASSWORD", "rnr-placeholder")
    monkeypatch.setenv("GIT_SSH_COMMAND", "touch /tmp/ran")
    given = git.environment(url)
    config = {
        given[f"GIT_CONFIG_KEY_{number}"]: given[f"GIT_CONFIG_VALUE_{number}"]
        for number in range(int(given["GIT_CONFIG_COUNT"]))
    }
    assert config["http.https://git.example.test:8443/.extraHeader"].startswith("Authorization: Basic ")
    assert (config["protocol.allow"], config["http.followRedirects"], config["core.hooksPath"]) == (
        "never",
        "false",
        "/dev/null",
    )
    assert "GIT_SSH_COMMAND" not in given
    assert Path(given["GIT_CONFIG_GLOBAL"]) == Path("/dev/null")
