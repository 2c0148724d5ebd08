"""The authority of a sandbox: believed by who has its certificate, and by nobody else."""

from __future__ import annotations

import ssl

import pytest

from runner.egress.authority import Authority


def shake(server: ssl.SSLContext, pem: bytes, name: str) -> ssl.SSLObject:
    """A handshake in memory; the client's end."""
    context = ssl.create_default_context(cadata=pem.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(down, up, server_hostname=name)
    other = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for end in (client, other):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    client.do_handshake()
    return client


@pytest.mark.parametrize("name", ["api.example.test", "198.51.100.7", "2001:db8::7", f"{'a' * 60}.{'b' * 60}.test"])
def test_a_host_is_believed_by_its_own_sandbox_only(name: str) -> None:
    authority, other = Authority("s1"), Authority("s2")
    client = shake(authority.context(name), authority.pem, name)
    assert client.selected_alpn_protocol() == "http/1.1"
    assert client.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(authority.context(name), other.pem, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(authority.context("else.example.test"), authority.pem, name)


def test_a_certificate_is_made_once_and_hosts_are_bounded() -> None:
    authority = Authority("s1")
    first = authority.context("a.test")
    assert authority.context("a.test") is first
    for number in range(300):
        authority.context("a.test") if number % 50 == 0 else authority.context(f"h{number % 280}.test")
    assert authority.context("a.test") is first
    assert len(authority._contexts) <= 256


def test_the_key_lies_in_no_certificate() -> None:
    assert b"PRIVATE" not in Authority("s1").pem
