"""A certificate authority per sandbox, for tunnels whose requests are judged one by one.

Its key lives in this process's memory and is never another sandbox's: whoever steals what one sandbox trusts can
impersonate nothing to any other. A host's certificate is made when it is first asked for.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_EARLIER = timedelta(hours=1)  # a sandbox shares our clock; this is for what it measured before a step
_AUTHORITY_FOR = timedelta(days=90)  # no task lives longer than its token
_LEAF_FOR = timedelta(days=2)
_RENEW = timedelta(days=1)  # a leaf older than this is made anew
_MAX_LEAVES = 256  # hosts of one sandbox; beyond it the oldest goes


class Authority:
    """The authority of one sandbox. `pem` is what the sandbox should trust."""

    def __init__(self, sandbox: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())  # one for all: they live in the same memory
        self._name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "toolrunner"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"egress of sandbox {sandbox}"[:64]),
            ]
        )
        public = self._key.public_key()
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + _AUTHORITY_FOR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self._issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
        self._contexts: dict[str, tuple[datetime, ssl.SSLContext]] = {}

    def context(self, host: str) -> ssl.SSLContext:
        """A server's context with a certificate for `host`, a canonical name or address."""
        now = datetime.now(UTC)
        found = self._contexts.pop(host, None)
        if found is None or found[0] + _RENEW < now:
            found = now, self._make(host, now)
        self._contexts[host] = found  # last: the order is that of use
        if len(self._contexts) > _MAX_LEAVES:
            del self._contexts[next(iter(self._contexts))]
        return found[1]

    def _make(self, host: str, now: datetime) -> ssl.SSLContext:
        subject: x509.GeneralName
        try:
            subject = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            subject = x509.DNSName(host)
        public = self._leaf_key.public_key()
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))  # names of 253 characters do not fit a common name; nobody reads it
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER)
            .not_valid_after(now + _LEAF_FOR)
            .add_extension(x509.SubjectAlternativeName([subject]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(self._issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        key = self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0  # nothing to resume: a tunnel is a connection
        context.set_alpn_protocols(["http/1.1"])
        _load(context, leaf.public_bytes(serialization.Encoding.PEM) + key)
        return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """Certificate and key into a context. Python reads them from a path only; this one is memory."""
    descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
