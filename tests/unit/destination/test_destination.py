"""One form or none: what is accepted is canonical, and what two parsers could read in two ways is refused."""

from __future__ import annotations

import posixpath
import re
import string
from collections.abc import Callable
from urllib.parse import quote, unquote, urlsplit

import pytest
import urllib3
from hypothesis import example, given
from hypothesis import strategies as st

from runner.destination import (
    MAX_PATH,
    MAX_QUERY,
    Destination,
    Malformed,
    Target,
    absolute,
    authority,
    host,
    host_pattern,
    is_literal,
    method,
    origin,
    path,
    path_pattern,
    port,
    written,
)

LABEL = "a" * 63


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("example.com.", "example.com"),
        ("localhost", "localhost"),
        ("3com.example", "3com.example"),
        ("r3---sn-x.example.com", "r3---sn-x.example.com"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("XN--MNCHEN-3YA.de", "xn--mnchen-3ya.de"),
        (f"{LABEL}.{LABEL}.{LABEL}.{'a' * 61}", f"{LABEL}.{LABEL}.{LABEL}.{'a' * 61}"),
        ("1.2.3.4", "1.2.3.4"),
        ("0.0.0.0", "0.0.0.0"),
        ("[::1]", "::1"),
        ("[2001:DB8:0:0::1]", "2001:db8::1"),
        ("[::ffff:1.2.3.4]", "1.2.3.4"),
        ("[::FFFF:102:304]", "1.2.3.4"),
    ],
)
def test_hosts_have_one_form(text: str, canonical: str) -> None:
    assert host(text) == canonical
    assert host(written(canonical)) == canonical


REFUSED_HOSTS = [
    *("", ".", "..", "a..b", "a.b..", ".a", "-a.com", "a-.com", "a_b.com", "_dmarc.example.com", "a b", "a\tb", "a\0b"),
    *("a\r\nb", "a\n", "\na", "a%20b", "%61.com", "a/b", "a\\b", "a?b", "a#b", "a@b", "a:b", "a,b", "a*b", "*.a.com"),
    *("münchen.de", "ａ.com", "a。com", "xn--", "xn--a.de", "xn--zzzzzzzzz.de", "xn--abc-.de"),
    *(LABEL + "a", f"{LABEL}.{LABEL}.{LABEL}.{'a' * 62}", "a." * 127 + "aa"),
    *("1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "01.2.3.4", "1.2.3.04"),
    *("1.2.3.256", "1.2.3.4.", "1.2.3.4.5", "1.2.3", "a.0x", "a.1", "a.0xff", "a.1.", "0x", "1.2.3.0x4", "0x7F000001"),
    *("::1", "::ffff:1.2.3.4", "[::1", "::1]", "[]", "[1.2.3.4]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[::1%]"),
    *("[:::1]", "[1::2::3]", "[::ffff:1.2.3.04]", "[::01.2.3.4]", "[v1.a]", "[::1].", "[::1]a", "[ ::1]", "[12345::]"),
]


@pytest.mark.parametrize("text", REFUSED_HOSTS)
def test_what_is_no_host_is_refused_not_interpreted(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        host(text)
    assert str(caught.value).isprintable()
    with pytest.raises(Malformed):
        authority(f"{text}:443")


@given(st.text(alphabet=string.ascii_letters + string.digits + "-._:[]%@xn ", max_size=40))
def test_a_canonical_host_is_a_fixed_point_and_another_parser_reads_the_same(text: str) -> None:
    try:
        found = host(text)
    except Malformed:
        return
    assert host(written(found)) == found
    assert found == found.lower()
    other = urllib3.util.parse_url(f"http://{text}:80/")
    theirs = (other.host or "").strip("[]").removesuffix(".")
    assert other.port == 80
    assert host(written(theirs)) == found
    assert host(written(urlsplit(f"http://{text}:80/").hostname or "")) == found


def test_ports_are_plain_decimals() -> None:
    assert [port(text) for text in ("1", "443", "65535")] == [1, 443, 65535]
    for text in (
        "",
        "0",
        "00",
        "080",
        "+80",
        "-1",
        " 80",
        "80 ",
        "80\n",
        "65536",
        "99999",
        "100000",
        "0x50",
        "８０",
        "8_0",
    ):
        with pytest.raises(Malformed):
            port(text)


def test_authorities() -> None:
    assert authority("Example.com:443") == Destination("example.com", 443)
    assert authority("[::1]:8443") == Destination("::1", 8443)
    assert str(authority("[::1]:8443")) == "[::1]:8443"
    assert authority("example.com", 80) == ("example.com", 80)
    assert authority("[::1]", 80) == ("::1", 80)
    for text in (
        "example.com",
        "[::1]",
        "u@a:443",
        "u:p@a:443",
        "@a:443",
        "::1:443",
        "a:443:1",
        ":443",
        "a:",
        "[::1]x:1",
    ):
        with pytest.raises(Malformed):
            authority(text)
    for text in ("a:", "[::1]:", "u@a"):
        with pytest.raises(Malformed):
            authority(text, 80)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("/", "/"),
        ("/a/b.c/", "/a/b.c/"),
        ("/%61%41%7e", "/aA~"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%20b", "/a%20b"),
        ("/a;v=1,2/b@c:d", "/a;v=1,2/b@c:d"),
        ("/100%25", "/100%25"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a..b", "/a..b"),
        ("/..a", "/..a"),
        ("/a%3Bb", "/a%3Bb"),
    ],
)
def test_paths_have_one_form(text: str, canonical: str) -> None:
    assert path(text) == canonical
    assert path(canonical) == canonical


REFUSED_PATHS = [
    *(
        "",
        "a",
        "*",
        "http://a/",
        "/a b",
        "/a\0",
        "/a\r\nb",
        "/\x7f",
        "/é",
        "/a?b",
        "/a#b",
        "/a\\b",
        '/"',
        "/<>",
        "/a|b",
        "/{x}",
    ),
    *(
        "//",
        "//a",
        "/a//b",
        "/a//",
        "/.",
        "/..",
        "/a/.",
        "/a/..",
        "/a/./b",
        "/a/../b",
        "/%2e",
        "/%2E%2e/a",
        "/.%2e/a",
        "/a/%2e",
    ),
    *("/..;/a", "/.;x", "/a/..;v=1/b", "/a%2f..%2fb", "/a%2F..", "/..%2fa", "/a%2f.%2fb", "/%2e%2e%2fa"),
    *(
        "/%00",
        "/a%0a",
        "/%0D%0Ax",
        "/%1f",
        "/%7f",
        "/%5c",
        "/..%5ca",
        "/a%5Cb",
        "/%252e",
        "/%252F",
        "/%25%32%65",
        "/%255c",
    ),
    *(
        "/%2500",
        "/%250a",
        "/%25252e",
        "/%",
        "/%2",
        "/%zz",
        "/%u0041",
        "/a%",
        "/%c0%af",
        "/%ff",
        "/%e2%82",
        "/%c0%ae%c0%ae/",
    ),
    "/" + "a" * MAX_PATH,
]


@pytest.mark.parametrize("text", REFUSED_PATHS)
def test_a_path_that_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        path(text)
    assert str(caught.value).isprintable()


PIECES = ["/", ".", "..", "%", "2", "e", "E", "f", "F", "5", "c", "0", ";", "a", "\\", "%2e", "%2F", "%25", "%5c"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@example("%25%32%65")
@example("a/%2e%2e;/b")
def test_no_decoder_finds_another_place_in_a_canonical_path(text: str) -> None:
    try:
        found = path("/" + text)
    except Malformed:
        return
    assert path(found) == found
    once = unquote(found, errors="strict")
    for decoded in (once, unquote(once)):
        assert "\0" not in decoded
        assert "\\" not in decoded
        bare = "/".join(segment.partition(";")[0] for segment in decoded.split("/"))
        for each in (decoded, bare):
            assert not {".", ".."} & set(each.split("/"))
    if ";" not in found:
        assert posixpath.normpath(once).rstrip("/") == once.rstrip("/").replace("//", "/") or "%2F" in found


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda part: part.strip(".") and "\\" not in part), max_size=4))
def test_what_clients_encode_is_accepted(parts: list[str]) -> None:
    try:
        text = "/" + "/".join(quote(part, safe="") for part in parts)
    except UnicodeEncodeError:  # a lone surrogate has no encoding
        return
    if (
        any(not char.isprintable() and ord(char) < 0x80 for part in parts for char in part)
        or "%25" in text
        or "%2F" in text
    ):
        return
    assert unquote(path(text)) == unquote(text)


def test_targets_and_queries() -> None:
    assert absolute("http://Example.COM:8080/a%41?q=/../%00") == Target(
        "http", "example.com", 8080, "/aA", "?q=/../%00"
    )
    assert absolute("HTTP://h") == Target("http", "h", 80, "/", "")
    assert absolute("http://h?x") == Target("http", "h", 80, "/", "?x")
    assert absolute("http://[::1]/") == Target("http", "::1", 80, "/", "")
    assert absolute("https://h/", frozenset({"https"})) == Target("https", "h", 443, "/", "")
    assert origin("/a?") == ("/a", "?")
    assert origin("/a?b?c") == ("/a", "?b?c")
    assert origin("/?" + "q" * (MAX_QUERY - 1))[1] == "?" + "q" * (MAX_QUERY - 1)
    for text in (
        *(
            "",
            "/",
            "h",
            "h:80",
            "http:/h",
            "http:h/",
            "http://",
            "http:///a",
            "https://h/",
            "ftp://h/",
            "gopher://h",
            "file:///a",
        ),
        *(
            "http://u@h/",
            "http://u:p@h/",
            "http://@h/",
            "http://h#f",
            "http://h/#",
            "http://h/?#",
            "http://h:/",
            "http://h:0/",
        ),
        *(
            "http://a\\@b/",
            "http://a b/",
            "http://h /",
            " http://h/",
            "http://h/\n",
            "http://h/?\n",
            "http://h/?é",
            "http://h/? ",
        ),
        *(
            "http://h/a\tb",
            "http://h%00/",
            "http://h\0/",
            "http://1.2.3.4.5/",
            "javascript:alert(1)",
            "http://[::1/",
            "*",
        ),
        "http://h/?" + "q" * MAX_QUERY,
    ):
        with pytest.raises(Malformed):
            absolute(text)


def test_methods() -> None:
    assert [method(text) for text in ("GET", "PATCH", "PROPFIND", "M-SEARCH")] == [
        "GET",
        "PATCH",
        "PROPFIND",
        "M-SEARCH",
    ]
    for text in (
        "",
        "get",
        "Get",
        "GET ",
        "G ET",
        "GET\0",
        "CONNECT",
        "TRACE",
        "TRACK",
        "-GET",
        "GET1",
        "ＧＥＴ",
        "A" * 33,
    ):
        with pytest.raises(Malformed):
            method(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("API.example.com", "api.example.com"),
        ("*.Example.com", "*.example.com"),
        ("*.example.com.", "*.example.com"),
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("MÜNCHEN.de", "xn--mnchen-3ya.de"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("faß.de", "xn--fa-hia.de"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
    ],
)
def test_hosts_of_rules(text: str, canonical: str) -> None:
    assert host_pattern(text) == canonical
    assert host_pattern(canonical) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.",
        "*.com",
        "**.a.com",
        "a.*.com",
        "*.*.a.com",
        "*a.com",
        "a*.b.com",
        "*.10.0.0.1",
        "*.[::1]",
        "☃☃",
        "a b",
        "\u202e.de",
        "xn--a.de",
        "10.0.0.0/8",
    ],
)
def test_hosts_that_no_rule_may_have(text: str) -> None:
    with pytest.raises(Malformed):
        host_pattern(text)


def test_any_host_only_where_it_may_stand() -> None:
    assert host_pattern("*", anywhere=True) == "*"
    with pytest.raises(Malformed, match="only a tool's manifest"):
        host_pattern("*")
    for text in ("**", "*.", "*.com", "* ", ".*"):
        with pytest.raises(Malformed):
            host_pattern(text, anywhere=True)


def test_literals() -> None:
    assert [is_literal(text) for text in ("1.2.3.4", "::1", "example.com", "3com.example")] == [
        True,
        True,
        False,
        False,
    ]


PATTERNS = [
    ("/v1/*", ["/v1/", "/v1/a", "/v1/a/b/"], ["/v1", "/v1x", "/v2/a", "/", "/v1/a%2Fb"]),
    ("/*", ["/", "/a", "/a/b"], ["/a%2Fb"]),
    ("/v1/{id}", ["/v1/7", "/v1/a.b"], ["/v1", "/v1/", "/v1/7/", "/v1/7/8", "/v1/a%2Fb"]),
    ("/v1/{id}/x", ["/v1/7/x"], ["/v1//x", "/v1/7/y", "/v1/7/8/x", "/v1/x"]),
    ("/{a}/{b}/*", ["/1/2/", "/1/2/3/4"], ["/1/2", "/1"]),
    ("/v1", ["/v1"], ["/v1/", "/V1", "/"]),
    ("/v1/", ["/v1/"], ["/v1", "/v1/a"]),
    ("/projects/a%2Fb/x", ["/projects/a%2Fb/x"], ["/projects/a/b/x", "/projects/a%2Fc/x"]),
    ("/projects/a%2Fb/*", ["/projects/a%2Fb/x"], ["/projects/a%2Fb/x%2Fy"]),
]


@pytest.mark.parametrize(("text", "fits", "misses"), PATTERNS)
def test_patterns_of_paths(text: str, fits: list[str], misses: list[str]) -> None:
    pattern = path_pattern(text)
    assert [each for each in fits if not pattern.matches(each.split("/"))] == []
    assert [each for each in misses if pattern.matches(each.split("/"))] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "v1",
        "/v1/*/x",
        "/v1//x",
        "//*",
        "/v1//*",
        "/{a}{b}",
        "/x{a}",
        "/{}",
        "/{1}",
        "/../x",
        "/v1/%2e",
        "/a%2fb",
        "/%41",
        "/a b",
        "/a?b",
        "/**",
        "/a/**/*x?",
    ],
)
def test_patterns_that_no_rule_may_have(text: str) -> None:
    with pytest.raises(Malformed):
        path_pattern(text)


@given(
    st.lists(st.sampled_from(["a", "b", "{x}", "c%2Fd"]), min_size=1, max_size=6),
    st.booleans(),
    st.text("/ab", max_size=12),
)
def test_a_pattern_reads_like_its_expression(parts: list[str], prefix: bool, text: str) -> None:
    """Another matcher, by regular expression, agrees."""
    pattern = path_pattern("/" + "/".join(parts) + ("/*" if prefix else ""))
    expression = "".join("/[^/]+" if part == "{x}" else "/" + re.escape(part) for part in parts) + (
        "/.*" if prefix else ""
    )
    subject = "/" + text
    assert pattern.matches(subject.split("/")) == bool(re.fullmatch(expression, subject))


@pytest.mark.parametrize("parse", [host, port, authority, path, method, absolute, origin, host_pattern, path_pattern])
@given(text=st.text(max_size=60))
def test_every_parser_is_total(parse: Callable[[str], object], text: str) -> None:
    """A form, or Malformed with words that hold nothing of what came."""
    said = ""
    try:
        parse(text)
    except Malformed as error:
        said = str(error)
    assert said == "" or (said.isprintable() and len(said) < 120)
