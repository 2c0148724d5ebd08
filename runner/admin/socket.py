"""admin.sock: one request, one answer, for operators only."""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
import struct

from runner.admin.operations import Operations
from runner.errors import RunnerError, refusal
from runner.wire import admin
from runner.wire.frame import HEADER, Decoder, encode

_log = logging.getLogger(__name__)
_MAX_FRAME = 1 << 20  # an announcement with 256 tools is a few KiB
_PATIENCE_S = 10.0


class AdminServer:
    """Accepts operators. A request is read, carried out, answered; then the next on the same connection."""

    def __init__(self, operations: Operations, uids: frozenset[int]) -> None:
        self._operations = operations
        self._uids = uids
        self._decoder: Decoder[admin.FromOperator] = Decoder(admin.FromOperator, elements=4096, depth=8)
        self._server: asyncio.Server | None = None

    async def start(self, sock: sockets.socket) -> None:
        """Accept on the socket that parent bound."""
        self._server = await asyncio.start_unix_server(self._serve, sock=sock)

    def admit_only(self, uids: frozenset[int]) -> None:
        """`[peers]` was changed: these may connect from now on."""
        self._uids = uids

    def close(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            raw = writer.get_extra_info("socket").getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
            _, uid, _ = struct.unpack("3i", raw)
            if uid not in self._uids:
                reason = f"uid {uid} is no operator"
                writer.write(encode(admin.Refused(refusal=refusal("unauthenticated", reason, next_step="see [peers]"))))
                return
            while (message := await self._read(reader)) is not None:
                writer.write(encode(await self._answer(message, uid)))
                await writer.drain()
        except RunnerError as error:
            writer.write(encode(admin.Refused(refusal=error.refused)))
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # the operator left in the middle: nothing was asked
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> admin.FromOperator | None:
        try:
            head = await asyncio.wait_for(reader.readexactly(HEADER), 600)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        length = int.from_bytes(head, "big")
        if not 0 < length <= _MAX_FRAME:
            raise RunnerError(refusal("protocol", f"frame length {length} is not within 1..{_MAX_FRAME}"))
        return self._decoder.decode(await asyncio.wait_for(reader.readexactly(length), _PATIENCE_S))

    async def _answer(self, message: admin.FromOperator, uid: int) -> admin.ToOperator:
        try:
            return await self._operations.carry_out(message, uid)
        except RunnerError as error:
            return admin.Refused(refusal=error.refused)
        except Exception:
            _log.exception("an operation failed")
            return admin.Refused(refusal=refusal("internal", "the daemon has a defect; the log has the details"))
