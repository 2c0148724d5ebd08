"""admin.sock: who asks is settled first (by uid, or by the proof of a key), then one request, one answer."""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import struct
from collections.abc import Callable
from typing import Protocol

from runner.admin.operations import Operations
from runner.admin.roster import Asker, Roster
from runner.errors import RunnerError, refusal, refuse
from runner.wire import admin
from runner.wire.frame import HEADER, Decoder, encode

_log = logging.getLogger(__name__)
_MAX_FRAME = 1 << 20  # an announcement with 256 tools is a few KiB
_PATIENCE_S = 10.0  # for a frame that has begun, and for everything of a peer that nobody knows yet
_IDLE_S = 600.0  # between two requests of an operator
_UNKNOWN = 32  # connections of peers that nobody knows yet: operators beside them are not held up


class Counts(Protocol):
    """Where refusals are counted (`runner/gate/strangers.py`)."""

    def count(self, uid: int, code: str, detail: str) -> None:
        """One more refusal of this uid."""


class AdminServer:
    """Accepts operators. A request is read, carried out, answered; then the next on the same connection."""

    def __init__(
        self, operations: Operations, roster: Roster, strangers: Counts, *, audience: str, nonce: Callable[[], str]
    ) -> None:
        self._operations = operations
        self.roster = roster
        self.strangers = strangers
        self._audience = audience
        self._nonce = nonce
        self._unknown = 0
        self._decoder: Decoder[admin.FromOperator] = Decoder(admin.FromOperator, elements=4096, depth=8)
        self._server: asyncio.Server | None = None

    async def start(self, sock: sockets.socket) -> None:
        """Accept on the socket that parent bound."""
        self._server = await asyncio.start_unix_server(self._serve, sock=sock)

    def admit_only(self, roster: Roster) -> None:
        """The configuration was changed: these are the operators from now on, also on connections that are open."""
        self.roster = roster

    def close(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = -1
        try:
            raw = writer.get_extra_info("socket").getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
            _, uid, _ = struct.unpack("3i", raw)
            key = ""
            if self.roster.asker(uid, "") is None:
                key = await self._introduced(reader, writer, uid)
            await self._requests(reader, writer, uid, key)
        except RunnerError as error:
            if error.refused.code == "unauthenticated":
                self.strangers.count(uid, error.refused.code, f"admin.sock: {error.detail or error.refused.reason}")
            writer.write(encode(admin.Refused(refusal=error.refused)))
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the operator left in the middle: nothing was asked
        finally:
            writer.close()

    async def _introduced(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> str:
        """The thumbprint that a peer of no known uid proves, within `_PATIENCE_S`. Raises `RunnerError`."""
        if not self.roster.keyed:
            raise self._stranger(uid)
        if self._unknown >= _UNKNOWN:
            raise refuse("busy", "too many connections of peers that have proved no key yet", retry_after_ms=1000)
        self._unknown += 1
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if not isinstance(await self._read(reader), admin.Hello):
                    raise self._stranger(uid)
                return await self._prove(reader, writer, uid)
        finally:
            self._unknown -= 1

    async def _prove(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> str:
        """After `Hello`: one challenge, one answer. Returns the proven thumbprint."""
        nonce = self._nonce()
        writer.write(encode(admin.Challenge(nonce=nonce, audience=self._audience)))
        await writer.drain()
        async with asyncio.timeout(_PATIENCE_S):
            answer = await self._read(reader)
        if not isinstance(answer, admin.Prove):
            raise refuse("protocol", "a challenge is answered by a proof")
        self.roster.prove(answer, audience=self._audience, nonce=nonce)
        asker = self.roster.asker(uid, answer.key)
        if asker is None:
            raise self._stranger(uid)
        writer.write(encode(self._whoami(asker)))
        await writer.drain()
        return answer.key

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int, key: str) -> None:
        while (message := await self._read(reader)) is not None:
            asker = self.roster.asker(uid, key)
            if asker is None:  # taken out of the configuration since
                raise self._stranger(uid)
            match message:
                case admin.Hello():
                    if key:
                        raise refuse("protocol", "this connection has proved a key already")
                    key = await self._prove(reader, writer, uid)
                case admin.Prove():
                    raise refuse("protocol", "a proof answers a challenge, which `hello` asks for")
                case _:
                    writer.write(encode(await self._answer(message, asker)))
            await writer.drain()

    def _stranger(self, uid: int) -> RunnerError:
        return refuse(
            "unauthenticated",
            f"uid {uid} is no operator",
            next_step="prove an operator's key with `runner --operator-key FILE …`, or see [[operators]] and [peers]",
        )

    async def _read(self, reader: asyncio.StreamReader) -> admin.FromOperator | None:
        try:
            head = await asyncio.wait_for(reader.readexactly(HEADER), _IDLE_S)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        length = int.from_bytes(head, "big")
        if not 0 < length <= _MAX_FRAME:
            raise RunnerError(refusal("protocol", f"frame length {length} is not within 1..{_MAX_FRAME}"))
        return self._decoder.decode(await asyncio.wait_for(reader.readexactly(length), _PATIENCE_S))

    async def _answer(self, message: admin.FromOperator, asker: Asker) -> admin.ToOperator:
        try:
            self.roster.check(asker, message)
            if isinstance(message, admin.Whoami):
                return self._whoami(asker)
            return await self._operations.carry_out(message, asker)
        except RunnerError as error:
            if error.refused.code in ("denied", "conflict"):  # conflict: what was to be confirmed was altered
                name = asker.operator.name
                self.strangers.count(asker.uid, error.refused.code, f"admin.sock: {name}: {error.refused.reason}")
            return admin.Refused(refusal=error.refused)
        except Exception:
            _log.exception("an operation failed")
            return admin.Refused(refusal=refusal("internal", "the daemon has a defect; the log has the details"))

    def _whoami(self, asker: Asker) -> admin.WhoamiView:
        return admin.WhoamiView(
            name=asker.operator.name,
            roles=tuple(sorted(asker.operator.roles)),
            uid=asker.uid,
            key=asker.key,
            may=self.roster.may(asker),
        )
