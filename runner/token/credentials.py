"""What an agent is handed: its token chain, its holder key, the daemon's socket: JSON on an inherited descriptor."""

from __future__ import annotations

import msgspec

from runner.errors import refuse
from runner.token.keys import SigningKey
from runner.token.strict import b64, unb64

DESCRIPTOR_VARIABLE = "RUNNER_CREDENTIALS_FD"  # names the descriptor's number; the secret itself is never in it
MAX_CREDENTIALS = 512 << 10  # the draft's MAX_CHAIN_SIZE, a key and a path, with room to spare


class Credentials(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`chain` root to leaf, `key` the leaf holder's private seed in base64url, `socket` the path of
    agent.sock, "" for the usual one.

    Secret as a whole: its repr shows none of it."""

    chain: tuple[str, ...]
    key: str
    socket: str

    def __repr__(self) -> str:
        return f"Credentials({len(self.chain)} tokens, socket {self.socket!r})"

    def signing_key(self) -> SigningKey:
        """The holder's key. Raises `RunnerError` (token) when `key` is not one."""
        try:
            return SigningKey(unb64(self.key))
        except ValueError:
            raise refuse("token", "the credentials hold no Ed25519 key") from None

    @property
    def leaf(self) -> str:
        """The token that proofs name."""
        return self.chain[-1]


def credentials(chain: tuple[str, ...], key: SigningKey, socket: str) -> Credentials:
    """Put together what an agent is handed."""
    return Credentials(chain=chain, key=b64(key.seed()), socket=socket)


def encode(handed: Credentials) -> bytes:
    """The bytes for the descriptor. Secret."""
    return msgspec.json.encode(handed)


def parse(data: bytes) -> Credentials:
    """Credentials from a descriptor's bytes. Raises `RunnerError` (token), never quoting them."""
    if len(data) > MAX_CREDENTIALS:
        raise refuse("token", f"the credentials are longer than {MAX_CREDENTIALS} bytes")
    try:
        handed = msgspec.json.decode(data, type=Credentials)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refuse("token", "the credentials are not as `runner exec` writes them") from None
    if not handed.chain:
        raise refuse("token", "the credentials lack a token")
    handed.signing_key()
    return handed
