"""What every receipt of a connection says of its caller: which process, under what authority. Found once, at hello.

The process at the other end may end, and another get its pid, while engine looks. So gate holds the peer's pidfd, which
the kernel made when it connected, until engine has answered: alive then means that the pid was never anybody else's.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Protocol

from runner.errors import RunnerError
from runner.gate.entries import canonical
from runner.ledger import entry as entries
from runner.model import Peer
from runner.token.claims import VerifiedChain
from runner.wire.engine import Identified

_SO_PEERPIDFD = 77  # Linux 6.5
_ANSWER_S = 2.0  # then the receipt says that nobody knows; half a GiB is hashed in less
_REMEMBERED = 1024  # chains whose authority is known to be kept


class Keeper(Protocol):
    """The one way into the content store: `runner.gate.entries.Journal`."""

    async def keep(self, data: bytes, salt: bytes = b"") -> entries.Content:
        """Put content there, and how an entry names it."""


class Provenance:
    """One connection's. `found` begins the search; `peer` and `authority` are ready once `ready` has returned."""

    def __init__(self, peer: entries.PeerProcess, profile: str, delegation: tuple[entries.Delegated, ...]) -> None:
        self.peer = peer
        self.profile = profile
        self.delegation = delegation
        self.authority: entries.Content | None = None
        self.search: asyncio.Future[None] | None = None

    async def ready(self) -> None:
        """Wait until all is known. A call that is abandoned meanwhile leaves the search to the others."""
        if self.search is not None and not self.search.done():
            await asyncio.shield(self.search)


class Provenances:
    """Makes them. `identify` asks engine; it may raise `RunnerError`, or not answer."""

    def __init__(self, keeper: Keeper, identify: Callable[[int], Awaitable[Identified]]) -> None:
        self._keeper = keeper
        self._identify = identify
        self._kept: OrderedDict[str, entries.Content] = OrderedDict()

    def begin(self, sock: socket.socket, peer: Peer, verified: VerifiedChain) -> Provenance:
        """Begin to find out. `sock` is the connection's; call it while the connection is open."""
        known = entries.PeerProcess(uid=peer.uid, pid=peer.pid, gid=peer.gid)
        derived = tuple(
            entries.Delegated(
                token=link.jti, digest=link.digest, issued=link.issued, expires=link.expires, name=link.name
            )
            for link in verified.links[1:]
        )
        found = Provenance(known, verified.profile, derived)
        found.search = asyncio.ensure_future(self._find(found, peer, pidfd_of(sock), verified))
        return found

    async def _find(self, found: Provenance, peer: Peer, pidfd: int, verified: VerifiedChain) -> None:
        try:
            found.authority = await self._authority(verified)
            identified = await self._process(peer, pidfd)
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        found.peer = entries.PeerProcess(
            uid=peer.uid,
            pid=peer.pid,
            gid=peer.gid,
            start=identified.start,
            cgroup=identified.cgroup,
            executable=identified.executable,
            digest=identified.digest,
            problem=identified.problem,
        )

    async def _process(self, peer: Peer, pidfd: int) -> Identified:
        if pidfd < 0:
            return _unknown("this kernel has no SO_PEERPIDFD (Linux 6.5), so its pid could be another's by now")
        try:
            async with asyncio.timeout(_ANSWER_S):
                identified = await self._identify(peer.pid)
        except RunnerError as error:
            return _unknown(error.refused.reason[:200])
        except TimeoutError:
            return _unknown(f"engine did not answer within {_ANSWER_S:g} s")
        if ended(pidfd):
            return _unknown("it ended before it was looked at")
        return identified

    async def _authority(self, verified: VerifiedChain) -> entries.Content:
        """The whole chain, as it is kept. Unsalted, so that a chain is kept once: it is no argument and no output."""
        known = self._kept.get(verified.leaf_digest)
        if known is None:
            chain = [
                {
                    "jti": link.jti,
                    "digest": link.digest,
                    "name": link.name,
                    "issued": link.issued,
                    "expires": link.expires,
                    "tools": link.tools,
                }
                for link in verified.links
            ]
            told = {"issuer": verified.issuer, "profile": verified.profile, "chain": chain}
            known = self._kept[verified.leaf_digest] = await self._keeper.keep(canonical(told))
            while len(self._kept) > _REMEMBERED:
                self._kept.popitem(last=False)
        return known


def pidfd_of(sock: socket.socket) -> int:
    """The process that connected, held by the kernel since; -1 where that cannot be had."""
    try:
        descriptor = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return -1
    os.set_inheritable(descriptor, False)
    return descriptor


def ended(pidfd: int) -> bool:
    """Whether the process has ended."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _unknown(problem: str) -> Identified:
    return Identified(number=0, problem=problem)
