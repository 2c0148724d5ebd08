"""Credentials of a live call: put where they are bound to go, and looked for where they are not. Pure.

A tool holds placeholders. One that stands in an allowed place of a request to an allowed destination becomes the
credential; one that stands anywhere else, like a canary anywhere at all, is a leak and stops the request. The search is
for the exact text: a tool that encodes its placeholder has moved something that is worth nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from runner.egress.head import Headers
from runner.wire.egress import Injection

CANARY = "canary"
_OFTEN = 16  # times that one place is filled: a short text that becomes a long one must not become endless
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_READABLE = frozenset({b"", b"identity"})


class Leak(Exception):
    """A placeholder or canary is where it may not be. Never sent on; the text says where."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(where)
        self.name = name
        self.where = where


class Unfit(Exception):
    """A credential cannot go where it is bound to: the text says why."""


class Filled(NamedTuple):
    """A head with credentials in it."""

    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    used: tuple[str, ...]
    shown: tuple[bytes, ...]  # what a response must not repeat: the credentials, in the forms that went out


class Needles:
    """Texts to look for, each with the name it is reported by."""

    def __init__(self, texts: Iterable[tuple[bytes, str]]) -> None:
        self._names = {text: name for text, name in texts if text}
        self.longest = max(map(len, self._names), default=0)

    def __bool__(self) -> bool:
        return bool(self._names)

    def find(self, data: bytes | bytearray, end: int = sys.maxsize) -> tuple[int, bytes] | None:
        """The first that stands in the first `end` bytes of `data`, and where."""
        found = [(at, text) for text in self._names if (at := data.find(text, 0, end)) >= 0]
        return min(found) if found else None

    def without(self, texts: Iterable[bytes]) -> Needles:
        """The others."""
        left = frozenset(self._names) - frozenset(texts)
        return Needles((text, name) for text, name in self._names.items() if text in left)

    def also(self, texts: Iterable[tuple[bytes, str]]) -> Needles:
        """These too."""
        return Needles([*self._names.items(), *texts])

    def lowered(self) -> Needles:
        """The same in lower case, as names of headers are kept."""
        return Needles((text.lower(), name) for text, name in self._names.items())

    def name(self, text: bytes) -> str:
        """What this text is reported by."""
        return self._names[text]

    def check(self, data: bytes | bytearray, where: str, end: int = sys.maxsize) -> None:
        """Raises `Leak` when one stands in the first `end` bytes of `data`."""
        if (found := self.find(data, end)) is not None:
            raise Leak(self._names[found[1]], where)

    def unfinished(self, data: bytes) -> int:
        """How many bytes at the end of `data` may be the beginning of one."""
        tail = data[max(0, len(data) - self.longest + 1) :]
        most = 0
        for text in self._names:
            at = tail.find(text[:1])
            while at >= 0 and not text.startswith(tail[at:]):
                at = tail.find(text[:1], at + 1)
            most = max(most, len(tail) - at if at >= 0 else 0)
        return most


class Watch:
    """Looks for needles in a stream that is not held up: a piece is looked at together with the end of the last."""

    def __init__(self, needles: Needles, where: str) -> None:
        self._needles = needles
        self._where = where
        self._before = b""

    def look(self, data: bytes | bytearray, size: int) -> None:
        """Raises `Leak` when the first `size` bytes of `data` complete one."""
        keep = self._needles.longest - 1
        if keep < 0:
            return
        if self._before:
            self._needles.check(self._before + data[: min(keep, size)], self._where)
        self._needles.check(data, self._where, size)
        last = bytes(data[max(0, size - keep) : size])
        self._before = (self._before + last)[-keep:] if keep else b""


class Filter:
    """A body on its way: `replaced` texts become credentials, and nothing of a needle is let through."""

    def __init__(
        self,
        needles: Needles,
        where: str,
        replaced: dict[bytes, tuple[str, bytes]] | None = None,
        shown: tuple[bytes, ...] = (),
    ) -> None:
        self._replaced = replaced or {}
        self._all = needles.also((text, name) for text, (name, _) in self._replaced.items())
        self._where = where
        self._held = b""
        self._filled = 0
        self.used: set[str] = set()
        self.rewrites = bool(self._replaced)
        self.values = (*shown, *(value for _, value in self._replaced.values()))  # what a response must not repeat

    def feed(self, data: bytes) -> bytes:
        """What may go out. Raises `Leak` before any byte of a needle does, `Unfit` when it would grow without end."""
        if not self._all:
            return data
        return self._pass(self._held + data, last=False)

    def finish(self) -> bytes:
        """What was held back because more could have followed."""
        return self._pass(self._held, last=True)

    def _pass(self, data: bytes, *, last: bool) -> bytes:
        out: list[bytes] = []
        while (found := self._all.find(data)) is not None:
            at, text = found
            if text not in self._replaced:
                raise Leak(self._all.name(text), self._where)
            name, value = self._replaced[text]
            self.used.add(name)
            self._filled += 1
            if self._filled > _OFTEN:
                raise Unfit(f"the placeholder stands more than {_OFTEN} times in the body")
            out += (data[:at], value)
            data = data[at + len(text) :]
        keep = 0 if last else self._all.unfinished(data)
        self._held = data[len(data) - keep :]
        out.append(data[: len(data) - keep])
        return b"".join(out)


class Credentials:
    """What one call holds placeholders for, and its canary."""

    def __init__(self, injections: tuple[Injection, ...], canary: str) -> None:
        self._injections = tuple(
            msgspec.structs.replace(each, places=tuple(map(_place, each.places))) for each in injections
        )
        self.needles = Needles(
            [(each.placeholder.encode(), each.name) for each in injections] + [(canary.encode(), CANARY)]
        )

    def wipe(self) -> None:
        """The call is over: no request can be given a credential any more."""
        self._injections = ()

    def bound(self, rules: Iterable[str]) -> tuple[Injection, ...]:
        """The credentials that may go where these rules of the tool lead."""
        wanted = frozenset(rules)
        return tuple(each for each in self._injections if wanted & frozenset(each.rules))

    def fill(self, bound: tuple[Injection, ...], path: str, query: str, headers: Headers) -> Filled:
        """The head that goes out. Raises `Leak` for a placeholder out of its place, `Unfit` for a value that cannot
        stand in its place."""
        return _Filling(self.needles, bound).fill(path, query, headers)

    def body(self, bound: tuple[Injection, ...], headers: Headers) -> Filter:
        """The filter of a request's body. Raises `Unfit` when a credential belongs in a body that cannot be read, or
        cannot be written in one of this kind."""
        fields = dict(headers)
        kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
        into = {
            each.placeholder.encode(): (each.name, _fitted(each.value, kind)) for each in bound if "body" in each.places
        }
        coded = fields.get(b"content-encoding", b"").lower()
        if into and coded not in _READABLE:
            raise Unfit("the body is compressed, so the credential that belongs in it cannot be put there")
        shown = tuple(each.value for each in bound if "body" in each.places)
        return Filter(self.needles.without(into), "body", into, shown)


def _fitted(value: bytes, kind: bytes) -> bytes:
    """A credential as a body of this kind writes a text: what stands there is the value and nothing else."""
    if kind == b"application/x-www-form-urlencoded":
        return quote_from_bytes(value, safe="").encode()
    if kind == b"application/json" or kind.endswith(b"+json"):
        try:
            return msgspec.json.encode(value.decode())[1:-1]
        except UnicodeDecodeError:
            raise Unfit("the credential is no text, so it cannot stand in JSON") from None
    return value


def _place(text: str) -> str:
    """A place in one spelling: header names have no case."""
    return text.lower() if text.startswith("header:") else text


class _Filling:
    """One head on its way out."""

    def __init__(self, needles: Needles, bound: tuple[Injection, ...]) -> None:
        self._needles = needles
        self._bound = bound
        self._used: set[str] = set()
        self._shown: set[bytes] = set()

    def fill(self, path: str, query: str, headers: Headers) -> Filled:
        self._needles.check(path.encode(), "path")
        self._needles.lowered().check(b"\n".join(name for name, _ in headers), "name of a header")
        filled = [(name, self._header(name, value)) for name, value in headers]
        return Filled(path, self._query(query), filled, tuple(sorted(self._used)), tuple(self._shown))

    def _replace(self, text: bytes, place: str) -> bytes:
        for each in self._bound:
            placeholder = each.placeholder.encode()
            if place in each.places and placeholder in text:
                if text.count(placeholder) > _OFTEN:
                    raise Unfit(f"the placeholder stands more than {_OFTEN} times in one place")
                text = text.replace(placeholder, each.value)
                self._used.add(each.name)
                self._shown.add(each.value)
        return text

    def _header(self, name: bytes, value: bytes) -> bytes:
        label = name.decode()
        if name in (b"authorization", b"proxy-authorization"):
            value = self._basic(value, replace=name == b"authorization")
        if self._needles.find(value) is None:
            return value
        done = self._replace(value, f"header:{label}")
        if done != value and _CONTROL.search(done):
            raise Unfit("the credential has a control character, so it cannot stand in a header")
        self._needles.check(done, f"header {label}")
        return done

    def _basic(self, value: bytes, *, replace: bool) -> bytes:
        scheme, _, coded = value.partition(b" ")
        if scheme.lower() != b"basic":
            return value
        try:
            plain = base64.b64decode(coded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return value
        done = self._replace(plain, "basic") if replace else plain
        self._needles.check(done, "basic credentials")
        if done == plain:
            return value
        encoded = base64.b64encode(done)
        self._shown.add(encoded)
        return scheme + b" " + encoded

    def _query(self, query: str) -> str:
        if self._needles.find(unquote_to_bytes(query)) is None:
            return query
        parts = []
        for pair in query[1:].split("&"):
            key, equals, value = pair.partition("=")
            self._needles.check(unquote_to_bytes(key), "query")
            plain = unquote_to_bytes(value)
            if self._needles.find(plain) is not None:
                name = unquote_to_bytes(key).decode("utf-8", "replace")
                done = self._replace(plain, f"query:{name}")
                self._needles.check(done, "query")
                value = quote_from_bytes(done, safe="")
                self._shown.add(value.encode())
            parts.append(key + equals + value)
        joined = "?" + "&".join(parts)
        self._needles.check(joined.encode(), "query")
        return joined
