"""Forms of a secret: each tool's own output is recognised, checked against the tools and not against our encoder."""

from __future__ import annotations

import base64
import codecs
import gzip
import html
import json
import quopri
import shlex
import subprocess
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.stream.exact import Needles, find
from runner.stream.forms import HEAD, SHORTEST, core, forms, spaced

SECRET = b"p4$s'W\"rd<&>\\/+=%~x \xc3\xa9\n7Q"
TEXT = SECRET.decode()
PLAIN = b"k9TzWq4LmXv7Rb2NdYc8Hs"

TIER_1: dict[str, Callable[[bytes], bytes]] = {
    "raw": lambda value: value,
    **{f"base64 after {n}": lambda value, n=n: base64.b64encode(b"u:?"[:n] + value + b"z") for n in range(3)},
    **{f"base64url after {n}": lambda value, n=n: base64.urlsafe_b64encode(b"u:?"[:n] + value) for n in range(3)},
    "base64 in lines": lambda value: base64.encodebytes(b"a longer text that stands before it " + value),
    "hex": lambda value: value.hex().encode(),
    "HEX": lambda value: value.hex().upper().encode(),
    "quote": lambda value: urllib.parse.quote(value).encode(),
    "quote all": lambda value: urllib.parse.quote(value, safe="").encode(),
    "quote lower": lambda value: urllib.parse.quote(value, safe="").lower().encode() if value.islower() else value,
    "urlencode": lambda value: urllib.parse.urlencode({"q": value}).encode(),
    "percent every byte": lambda value: "".join(f"%{byte:02X}" for byte in value).encode(),
    "json": lambda value: json.dumps(value.decode()).encode(),
    "json utf-8": lambda value: json.dumps(value.decode(), ensure_ascii=False).encode(),
    "json slashes": lambda value: json.dumps(value.decode()).replace("/", r"\/").encode(),
    "json every character": lambda value: "".join(f"\\u{ord(c):04x}" for c in value.decode()).encode(),
    "html": lambda value: html.escape(value.decode()).encode(),
    "html text": lambda value: html.escape(value.decode(), quote=False).encode(),
    "html decimal": lambda value: "".join(f"&#{ord(c)};" for c in value.decode()).encode(),
    "html hex": lambda value: "".join(f"&#x{ord(c):x};" for c in value.decode()).encode(),
    "shlex": lambda value: shlex.quote(value.decode()).encode(),
    "bash": lambda value: subprocess.run(["bash", "-c", 'printf "%q" "$1"', "_", value], capture_output=True).stdout,
    "utf-16-le": lambda value: value.decode().encode("utf-16-le"),
    "utf-16-be": lambda value: value.decode().encode("utf-16-be"),
    "reversed": lambda value: value[::-1],
    "gzip base64": lambda value: base64.b64encode(gzip.compress(b"some " + value)),
}
TIER_2: dict[str, Callable[[bytes], bytes]] = {
    **{f"base32 after {n}": lambda value, n=n: base64.b32encode(b"12345"[:n] + value) for n in range(5)},
    "base85": base64.b85encode,
    "ascii85": base64.a85encode,
    "rot13": lambda value: codecs.encode(value.decode(), "rot13").encode(),
    "upper": lambda value: value.upper(),
    "lower": lambda value: value.lower(),
    "swapcase": lambda value: value.swapcase(),
    "base64 twice": lambda value: base64.b64encode(base64.b64encode(value)),
    "base64 twice in text": lambda value: base64.b64encode(b"a" + base64.b64encode(b"bc" + value)),
    "hex of base64": lambda value: base64.b64encode(value).hex().encode(),
    "base64 of hex": lambda value: base64.b64encode(value.hex().encode()),
    "base64 reversed": lambda value: base64.b64encode(value)[::-1],
    "hex bytes": lambda value: value.hex(" ").encode(),
    "hex with colons": lambda value: value.hex(":").encode(),
    "xxd -i": lambda value: ", ".join(f"0x{byte:02x}" for byte in value).encode(),
    "escapes": lambda value: "".join(f"\\x{byte:02x}" for byte in value).encode(),
    "octal escapes": lambda value: "".join(f"\\{byte:03o}" for byte in value).encode(),
    "list": lambda value: str(list(value)).encode(),
    "decimals": lambda value: " ".join(map(str, value)).encode(),
    "percent twice": lambda value: urllib.parse.quote(urllib.parse.quote(value, safe="")).encode(),
    "quoted-printable": quopri.encodestring,
    "repr": lambda value: repr(value).encode(),
    "od -An -tx1": lambda value: subprocess.run(["od", "-An", "-tx1", "-w16"], input=value, capture_output=True).stdout,
    "powershell": lambda value: base64.b64encode(value.decode().encode("utf-16-le")),
    "spaced": lambda value: b" ".join(bytes((byte,)) for byte in value.translate(None, b" \n")),
    "utf-32": lambda value: value.decode().encode("utf-32-le"),
    "groups of four": lambda value: b" ".join(value[at : at + 4] for at in range(0, len(value), 4)),
    "rot47": lambda value: bytes((byte - 33 + 47) % 94 + 33 if 32 < byte < 127 else byte for byte in value),
    "xor": lambda value: bytes(byte ^ 1 for byte in value).hex().encode(),
    "xxd": lambda value: b"".join(
        b"%08x: %s\n" % (at, value[at : at + 16].hex(" ", 2).encode()) for at in range(0, len(value), 16)
    ),
}
MISSED = {"swapcase", "utf-32", "groups of four", "rot47", "xor", "xxd"}  # said in the documentation; the list is exact


@pytest.mark.parametrize("value", [SECRET, PLAIN])
@pytest.mark.parametrize("how", TIER_1)
def test_tier_1_is_found(how: str, value: bytes) -> None:
    needles = Needles.of({"s": (value,)})
    assert [found.rule for found in find(needles, b"x: " + TIER_1[how](value) + b"\n")] == ["secret:s"]
    assert not find(needles, b"x: " + TIER_1[how](bytes(byte ^ 1 if byte == 55 else byte for byte in value)) + b"\n")


@pytest.mark.parametrize("how", TIER_2)
def test_tier_2_is_found_but_for_what_is_said(how: str) -> None:
    needles = Needles.of({"s": (PLAIN,)})
    assert bool(find(needles, b"x: " + TIER_2[how](PLAIN) + b"\n")) == (how not in MISSED)


def test_recall_of_tier_2_is_as_promised() -> None:
    assert len(MISSED) / len(TIER_2) <= 0.2


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=SHORTEST, max_size=100))
def test_needles_of_any_value_can_be_looked_for(value: bytes) -> None:
    try:
        found = forms(value)
    except ValueError:
        with pytest.raises(ValueError, match=r"\w"):
            Needles.of({"s": (value,)})
        return
    assert next(iter(found)) == core(value).translate(None, b"\r\n")
    assert all(len(needle) >= SHORTEST and not set(needle) & set(b"\r\n") for needle in found)
    assert all(len(head) <= HEAD for head in spaced(value))
    assert find(Needles.of({"s": (value,)}), value)


def test_three_secrets_fit_into_three_automata() -> None:
    heads = {needle[:HEAD] for needle in forms(PLAIN)} | set(spaced(PLAIN))
    assert len(heads) <= 64
