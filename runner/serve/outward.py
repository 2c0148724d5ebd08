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


class Outward:
    """Each part's typed caller, None while it is being restarted."""

    def __init__(self, heard: Callable[[Any], None], changed: Callable[[Part, State], Awaitable[None]]) -> None:
        """`heard` gets what egress says unasked; `changed` is told that a part is "lost" or "restored"."""
        self.egress: egress.EgressCaller | None = None
        self.broker: broker.BrokerCaller | None = None
        self._heard = heard
        self._changed = changed
        self._channels: dict[Part, Channel] = {}
        self._watches: set[asyncio.Future[None]] = set()

    def attach(self, part: Part, sock: socket.socket) -> None:
        """Speak to this process from now on."""
        before = self._channels.get(part)
        if before is not None:
            before.close()
        if part == "egress":
            channel = Channel(sock, egress.FromEgress, self._from_egress)
            self.egress = egress.EgressCaller(channel)
        else:
            channel = Channel(sock, broker.FromBroker, self._from_broker)
            self.broker = broker.BrokerCaller(channel)
        self._channels[part] = channel
        self._beside(self._watch(part, channel, back=before is not None))

    def answer(self, answer: egress.Answer) -> None:
        """Tell egress what token and policy said; an egress that is gone asks no more."""
        if self.egress is not None:
            self.egress.answer(answer)

    def _beside(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _watch(self, part: Part, channel: Channel, *, back: bool) -> None:
        if back:
            await self._changed(part, "restored")
        await channel.closed.wait()
        if self._channels[part] is channel:
            setattr(self, part, None)
            _log.error("%s ended: calls that depend on it end too", part)
            await self._changed(part, "lost")

    def _from_egress(self, message: Any, descriptor: int | None) -> None:
        if descriptor is not None:
            os.close(descriptor)
        self._heard(message)

    def _from_broker(self, message: Any, descriptor: int | None) -> None:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(message, broker.Expired):
            _log.warning("call %s: lease %s expired before the call ended", message.call, message.lease)
