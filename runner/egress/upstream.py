"""From a canonical host to a connection: look up once, have every address judged, dial what was judged.

Nothing resolves a name a second time: what was checked is what is connected to, so an answer that changes between the
two (rebinding) changes nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple

import aiodns
import pycares

from runner.destination import is_literal
from runner.egress.body import Inlet
from runner.egress.link import Link, Stream, TlsLink
from runner.egress.refusals import Stop

_MAX_ADDRESSES = 64  # every one is judged; a name with more is not taken
_MAX_DIALS = 4  # of them are tried
_NO_SUCH = frozenset({aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA})


class Upstream(NamedTuple):
    """A connection to a destination."""

    link: Link
    stream: Stream
    inlet: Inlet
    address: str
    host: str
    port: int
    opened: tuple[tuple[str, ...], ...]  # the ranges with which its address was judged


class Resolver:
    """Names to addresses: the fixed ones of the configuration, then DNS. No search domains, no hosts file, no cache."""

    def __init__(self, hosts: dict[str, tuple[str, ...]], nameservers: Sequence[str], seconds: float) -> None:
        self._hosts = hosts
        self._dns = aiodns.DNSResolver(nameservers=list(nameservers) or None, timeout=seconds / 2, tries=2, domains=[])

    async def addresses(self, host: str) -> list[str]:
        """Every address of a canonical host. Raises `Stop` (upstream) when it has none or cannot be looked up."""
        if is_literal(host):
            return [host]
        if host in self._hosts:
            return list(self._hosts[host])
        answers = await asyncio.gather(self._ask(host, "A"), self._ask(host, "AAAA"))
        found = [address for answer in answers for address in answer]
        if not found:
            raise Stop("upstream", f"the name {host} has no address", part="dns")
        if len(found) > _MAX_ADDRESSES:
            raise Stop("upstream", f"the name {host} has more than {_MAX_ADDRESSES} addresses", part="dns")
        return found

    async def _ask(self, host: str, kind: str) -> list[str]:
        try:
            result = await self._dns.query_dns(f"{host}.", kind)
        except aiodns.error.DNSError as error:
            if error.args and error.args[0] in _NO_SUCH:
                return []
            raise Stop("upstream", f"the name {host} could not be looked up", part="dns") from None
        wanted = (pycares.ARecordData, pycares.AAAARecordData)
        return [record.data.addr for record in result.answer if isinstance(record.data, wanted)]

    def discard(self) -> None:
        """Nobody waits for an answer any more."""
        self._dns.cancel()

    async def close(self) -> None:
        """Ask nothing more."""
        await self._dns.close()


async def dial(
    addresses: Sequence[str],
    port: int,
    until: float,
    *,
    opened: Callable[[Link], object],
    closed: Callable[[Link], object],
) -> tuple[Link, str]:
    """Connect to the first of these addresses that answers, before the loop's clock says `until`. `opened` hears of
    each link before a packet leaves. Raises `Stop` (upstream, timeout)."""
    loop = asyncio.get_running_loop()
    tried = list(addresses)[:_MAX_DIALS]
    slow = False
    for number, address in enumerate(tried):
        share = (until - loop.time()) / (len(tried) - number)
        version = ipaddress.ip_address(address).version
        link = Link(socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_STREAM), closed)
        opened(link)
        try:
            async with asyncio.timeout(share):
                await link.connect((address, port))
        except TimeoutError:
            slow = True
            link.abort()
        except OSError:
            if link.closed:  # by the call's end, not by the destination
                raise
            link.abort()
        except BaseException:
            link.abort()
            raise
        else:
            link.no_delay()
            return link, address
    if slow:
        raise Stop("timeout", "the destination did not answer in time", part="upstream")
    raise Stop("upstream", "the destination could not be reached", part="upstream")


async def secure(link: Link, context: ssl.SSLContext, host: str) -> TlsLink:
    """TLS to `host`, its certificate verified. Raises `Stop` (upstream) when it is not acceptable."""
    stream = TlsLink(link, context, name=host)
    try:
        await stream.handshake()
    except ssl.SSLCertVerificationError as error:
        raise Stop(
            "upstream", f"the destination's certificate is not valid: {error.verify_message}", part="tls"
        ) from None
    except ssl.SSLError as error:
        raise Stop(
            "upstream", f"the destination's TLS is not acceptable: {error.reason or 'cut'}", part="tls"
        ) from None
    return stream


def client_context(authorities: bytes) -> ssl.SSLContext:
    """What upstream TLS must be: verified against these authorities (PEM), with the right name, TLS 1.2 or newer."""
    context = ssl.create_default_context(cadata=authorities.decode("ascii", "ignore"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context
