"""Inspectors of your own, each behind a Unix socket: a classifier that says what a text is.

One connection a question. Each message is JSON after its length in four bytes, big endian:

    → {"version": 1, "where": "stdout", "labels": ["untrusted"], "text": "…"}
    ← {"labels": ["injected"], "score": 87, "spans": [[12, 80]]}

With `http`, the same JSON is the body of a POST to that path, and of the answer, whose status is 200: most classifiers
serve that, also on a Unix socket. Gate has no network; one elsewhere is reached by a proxy of yours behind the socket.

`where` is `stdout`, `stderr` or `value` (a structured result, as JSON). `spans` are offsets in the text's UTF-8;
without them a label is of the whole. No labels: nothing was found. Whatever else comes, or comes late, is no verdict.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, NamedTuple, NoReturn

import h11
import msgspec

from runner.config import InspectorFile
from runner.errors import refuse

MAX_ANSWER = 64 << 10
_LABEL = re.compile(r"^[a-z][a-z0-9_]{0,31}(\.[a-z][a-z0-9_]{0,31}){0,3}\Z")
_OWN = frozenset({"secret", "untrusted", "uninspected"})  # labels that the daemon alone gives
_Int = Annotated[int, msgspec.Meta(ge=0)]


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    labels: Annotated[tuple[str, ...], msgspec.Meta(max_length=16)]
    score: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    spans: Annotated[tuple[tuple[_Int, _Int], ...], msgspec.Meta(max_length=256)] = ()


class Verdict(NamedTuple):
    """What it says of a text, checked: `parts` are in order, do not overlap, and are in the text."""

    labels: frozenset[str]
    score: int
    parts: tuple[tuple[int, int], ...]


class SocketInspector:
    """One of [[inspectors]]."""

    def __init__(self, settings: InspectorFile) -> None:
        self.name = settings.name
        self._path = settings.socket
        self._http = settings.http
        self._seconds = settings.timeout_ms / 1000

    async def ask(self, data: bytes, where: str, labels: frozenset[str]) -> Verdict:
        """Its verdict on a whole text. Raises `RunnerError` (unavailable): the reason says what was wrong."""
        text = data.decode("utf-8", "replace")
        asked = msgspec.json.encode({"version": 1, "where": where, "labels": sorted(labels), "text": text})
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._seconds):
                reader, writer = await asyncio.open_unix_connection(self._path)
                exchanged = self._posted if self._http else self._framed
                answer = msgspec.json.decode(await exchanged(asked, reader, writer), type=_Answer)
        except TimeoutError:
            self._wrong(f"it did not answer within {self._seconds:g} s")
        except (OSError, EOFError):
            self._wrong("it cannot be reached, or hung up")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, h11.ProtocolError):
            self._wrong("its answer is not one")
        finally:
            if writer is not None:
                writer.transport.abort()
        return self._checked(answer, len(data))

    async def _framed(self, asked: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(len(asked).to_bytes(4, "big") + asked)
        await writer.drain()
        size = int.from_bytes(await reader.readexactly(4), "big")
        if size > MAX_ANSWER:
            self._wrong(f"its answer is longer than {MAX_ANSWER} bytes")
        return await reader.readexactly(size)

    async def _posted(self, asked: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        http, body = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER), b""
        headers = {"Host": "localhost", "Content-Type": "application/json", "Connection": "close"}
        headers["Content-Length"] = str(len(asked))
        request = h11.Request(method="POST", target=self._http, headers=list(headers.items()))
        for event in (request, h11.Data(data=asked), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        await writer.drain()
        while not isinstance(came := http.next_event(), h11.EndOfMessage):
            if came is h11.NEED_DATA:
                http.receive_data(await reader.read(MAX_ANSWER))
            elif isinstance(came, h11.Response) and came.status_code != 200:
                self._wrong(f"it answered with HTTP status {came.status_code}")
            elif isinstance(came, h11.Data):
                body += came.data
                if len(body) > MAX_ANSWER:
                    self._wrong(f"its answer is longer than {MAX_ANSWER} bytes")
            elif not isinstance(came, h11.Response | h11.InformationalResponse):
                raise EOFError
        return body

    def _checked(self, answer: _Answer, size: int) -> Verdict:
        at = 0
        for start, end in answer.spans:
            if not at <= start < end <= size:
                self._wrong("its spans overlap, are out of order, or not in the text")
            at = end
        for label in answer.labels:
            if not _LABEL.match(label) or label.partition(".")[0] in _OWN:
                self._wrong("its answer has a label that is none, or the daemon's own")
        return Verdict(frozenset(answer.labels), answer.score, answer.spans)

    def _wrong(self, reason: str) -> NoReturn:
        raise refuse("unavailable", reason, field=self.name, retry_after_ms=1000) from None
