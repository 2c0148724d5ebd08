"""Gate's channels to egress and broker, which may end and come back while gate serves."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from runner.serve.channel import Channel
from runner.wire import broker, egress

_log = logging.getLogger(__name__)

Part = Literal["egress", "broker"]
State = Literal["lost", "restored"]
Answer = Callable[[egress.Answer], None]


class Outward:
    """Each part's typed caller, None while it is being restarted."""

    def __init__(
        self,
        heard: Callable[[Any, Answer], None],
        changed: Callable[[Part, State], Awaitable[None]],
        given_up: Callable[[Part, int], None],
    ) -> None:
        """`heard` gets what a part says unasked, and by what to answer it; `changed` is told that a part is "lost" or
        "restored", `given_up` to which of its processes nobody speaks any more."""
        self.egress: egress.EgressCaller | None = None
        self.broker: broker.BrokerCaller | None = None
        self._heard = heard
        self._changed = changed
        self._given_up = given_up
        self._channels: dict[Part, Channel] = {}
        self._watches: dict[Part, asyncio.Future[None]] = {}

    def attach(self, part: Part, sock: socket.socket, run: int = 0) -> None:
        """Speak to this process from now on, the part's `run`th: once the loss of the one before it is told."""
        before = self._channels.get(part)
        if before is not None:
            before.close()
        channel = self._channel(sock, egress.FromEgress if part == "egress" else broker.FromBroker)
        caller = egress.EgressCaller(channel) if part == "egress" else broker.BrokerCaller(channel)
        self._channels[part] = channel
        if before is None:
            setattr(self, part, caller)
        self._watches[part] = asyncio.ensure_future(self._watch(part, run, channel, caller, self._watches.get(part)))

    def abandon(self, part: Part) -> None:
        """It does not answer: take it for ended."""
        self._channels[part].close()

    async def _watch(
        self, part: Part, run: int, channel: Channel, caller: Any, before: asyncio.Future[None] | None
    ) -> None:
        if before is not None:
            await before
            setattr(self, part, caller)
            await self._changed(part, "restored")
        await channel.closed.wait()
        setattr(self, part, None)
        self._given_up(part, run)
        _log.error("%s ended: calls that depend on it end too", part)
        await self._changed(part, "lost")

    def _channel(self, sock: socket.socket, union: Any) -> Channel:
        """Questions are numbered anew by each process: an answer goes to the one that asked, or nowhere."""

        def heard(message: Any, descriptor: int | None) -> None:
            if descriptor is not None:
                os.close(descriptor)
            self._heard(message, channel.post)

        channel = Channel(sock, union, heard)
        return channel
