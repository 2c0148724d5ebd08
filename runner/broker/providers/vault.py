"""HashiCorp Vault and OpenBao: versions of a KV v2 engine, and leases of whatever an engine makes on request.

The only importer of hvac. A dynamic lease ends with the token that asked for it, so a login (AppRole) that would end
before the lease is made anew first. Redirects of a standby node are not followed: configure the address of the cluster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import hvac
import hvac.exceptions
import requests

from runner.broker.providers.http import Network, refused
from runner.broker.providers.provider import Issued, Wish, secret_of, unavailable
from runner.config import VaultProvider, VaultSecret

Credential = Callable[[str], bytes]
_ATTEMPTS = 2
_PAUSE_S = 0.2
_EARLY_S = 5.0  # a login is not used in its last seconds


class Vault:
    """The provider."""

    def __init__(self, name: str, config: VaultProvider, network: Network, credential: Credential) -> None:
        self._name = name
        self._config = config
        self._network = network
        self._credential = credential
        self._turn = threading.Lock()
        self._token, self._until = "", 0.0  # of AppRole, on the monotonic clock

    def issue(self, name: str, wish: Wish) -> Issued:
        """As `Provider`."""
        asked = self._config.secrets[name]
        whose = f"{self._name}:{name}"
        read = bool(wish.read and asked.read_path)
        path = asked.read_path if read else asked.path
        reach: Any = "read" if read else "full"
        if asked.engine == "kv2":
            answer, _ = self._ask(
                whose,
                lambda client: client.secrets.kv.v2.read_secret_version(
                    path, mount_point=asked.mount, raise_on_deleted_version=True
                ),
                wish.ttl_s,
            )
            kept = _member(answer, "data", whose)
            version = str(_member(kept, "metadata", whose).get("version", ""))[:20]
            return Issued(
                secret_of(kept.get("data"), asked.field, asked.username, whose=whose, version=version), reach=reach
            )
        answer, until = self._ask(whose, lambda client: _make(client, path, asked), wish.ttl_s)
        return self._leased(answer, until, asked, whose, reach)

    def renew(self, handle: str, ttl_s: float) -> float:
        """As `Provider`."""
        try:
            answer, until = self._ask(
                self._name, lambda client: client.sys.renew_lease(handle, increment=int(ttl_s)), ttl_s
            )
        except _Gone:
            raise unavailable(f"{self._name}: the lease has ended there", next_step="call again") from None
        return min(_seconds(answer, self._name), until - time.monotonic())

    def revoke(self, handle: str) -> None:
        """As `Provider`: `sync` has the server answer only when the engine has undone it."""
        try:
            self._ask(
                self._name,
                lambda client: client.adapter.put("/v1/sys/leases/revoke", json={"lease_id": handle, "sync": True}),
                0.0,
            )
        except _Gone:
            return

    def _leased(self, answer: Any, until: float, asked: VaultSecret, whose: str, reach: Any) -> Issued:
        handle = answer.get("lease_id") if isinstance(answer, dict) else None
        if not isinstance(handle, str) or len(handle) > 4096:
            raise unavailable(f"{whose}: the answer has no lease", next_step="see `path` and `engine`")
        try:
            made = secret_of(answer.get("data"), asked.field, asked.username, whose=whose)
            seconds = _seconds(answer, whose)
        except Exception:
            if handle:  # it was made, and nobody will be given it
                self.revoke(handle)
            raise
        return Issued(
            made,
            ttl_s=min(seconds, until - time.monotonic()) if handle else None,
            handle=handle,
            renewable=answer.get("renewable") is True,
            reach=reach,
        )

    # --- the server -------------------------------------------------------------------------------------------

    def _ask(self, whose: str, what: Callable[[Any], Any], ttl_s: float) -> tuple[Any, float]:
        """The answer, and until when (monotonic) the token that asked is good. A second attempt only where the server
        did nothing in the first: it was not reached, said so itself, or knew the token no more."""
        for attempt in range(1, _ATTEMPTS + 1):
            again = attempt < _ATTEMPTS
            with self._network.within(self._config.timeout_s, whose):
                try:
                    with self._client() as client:
                        until = self._log_in(client, whose, ttl_s)
                        return what(client), until
                except requests.exceptions.ConnectTimeout:
                    if not again:
                        raise
                except hvac.exceptions.VaultError as error:
                    status = _status(error)
                    if status == 403 and self._config.role_id and again:
                        self._forget()
                        continue
                    if not (status in (429, 502, 503) and again):
                        raise _told(error, status, whose) from None
            time.sleep(_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    def _client(self) -> _Client:
        session = self._network.prepare(requests.Session())
        made = hvac.Client(
            url=self._config.address,
            token="",
            namespace=self._config.namespace or None,
            session=session,
            allow_redirects=False,
            timeout=self._config.timeout_s,
        )
        return _Client(made, session)

    def _log_in(self, client: Any, whose: str, ttl_s: float) -> float:
        """Give the client a token that outlives `ttl_s` where one can be had. Returns until when it is good."""
        if not self._config.role_id:
            client.token = self._credential(self._config.token).decode("ascii", "strict")
            return float("inf")
        with self._turn:
            if not self._token or self._until < time.monotonic() + max(ttl_s, _EARLY_S):
                asked = time.monotonic()
                answer = client.auth.approle.login(
                    self._config.role_id,
                    self._credential(self._config.secret_id).decode("ascii", "strict"),
                    use_token=False,
                    mount_point=self._config.approle,
                )
                given = _member(answer, "auth", whose)
                token = given.get("client_token")
                if not isinstance(token, str) or not token:
                    raise unavailable(f"{whose}: the login gave no token", next_step="see its role")
                lives = _seconds(given, whose)
                self._token, self._until = token, asked + lives if lives else float("inf")
            client.token = self._token
            return self._until

    def _forget(self) -> None:
        with self._turn:
            self._token, self._until = "", 0.0


class _Gone(Exception):
    """There is no such lease (any more)."""


class _Client:
    """One operation's client; its connections are closed behind it."""

    def __init__(self, client: Any, session: requests.Session) -> None:
        self._client = client
        self._session = session

    def __enter__(self) -> Any:
        return self._client

    def __exit__(self, *_: object) -> None:
        self._session.close()


def _make(client: Any, path: str, asked: VaultSecret) -> Any:
    return client.adapter.post(f"/v1/{path}", json=asked.data) if asked.data else client.adapter.get(f"/v1/{path}")


def _status(error: hvac.exceptions.VaultError) -> int:
    kinds = {
        hvac.exceptions.InvalidRequest: 400,
        hvac.exceptions.Unauthorized: 401,
        hvac.exceptions.Forbidden: 403,
        hvac.exceptions.InvalidPath: 404,
        hvac.exceptions.RateLimitExceeded: 429,
        hvac.exceptions.InternalServerError: 500,
        hvac.exceptions.BadGateway: 502,
        hvac.exceptions.VaultDown: 503,
    }
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 500)


def _told(error: hvac.exceptions.VaultError, status: int, whose: str) -> Exception:
    """Its status in our words. Of the text only this one sentence is known and matters: both servers answer a revoked
    or expired lease with it."""
    if status == 400 and "lease not found" in str(error):
        return _Gone()
    return refused(status, whose)


def _member(answer: Any, name: str, whose: str) -> dict[str, Any]:
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, dict):
        raise unavailable(f"{whose}: an answer without `{name}`", next_step="see its address and path")
    return found


def _seconds(answer: Any, whose: str) -> float:
    found = answer.get("lease_duration") if isinstance(answer, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < 1 << 32:
        raise unavailable(f"{whose}: an answer without a time to live", next_step="see its address and path")
    return float(found)
