"""OAuth 2.0: an access token for each call, by client credentials (RFC 6749) or token exchange (RFC 8693).

The only importer of Authlib. A token is asked for once, never cached: it is this call's, ends with it where the server
revokes (RFC 7009), and no other call can be taken for this one by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus

from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session

from runner.broker.providers.http import Network, refused
from runner.broker.providers.provider import Issued, Wish, secret_of, unavailable
from runner.config import OAuthProvider, OAuthSecret

Credential = Callable[[str], bytes]
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type's name


class OAuth:
    """The provider."""

    def __init__(self, name: str, config: OAuthProvider, network: Network, credential: Credential) -> None:
        self._name = name
        self._config = config
        self._network = network
        self._credential = credential

    def issue(self, name: str, wish: Wish) -> Issued:
        """As `Provider`."""
        asked = self._config.secrets[name]
        whose = f"{self._name}:{name}"
        read = bool(wish.read and asked.read_scope)
        scope = asked.read_scope if read else asked.scope
        answer = self._fetch(whose, self._request(asked, scope))
        granted = answer.get("scope", scope)
        if not isinstance(granted, str) or (scope and not set(granted.split()) <= set(scope.split())):
            self._drop(answer)
            raise unavailable(f"{whose}: the token reaches further than was asked for", next_step="see that server")
        seconds = answer.get("expires_in")
        kind = answer.get("token_type")
        if (
            not isinstance(kind, str)
            or kind.lower() not in ("bearer", "n_a")
            or not (seconds is None or (isinstance(seconds, int) and 0 < seconds < 1 << 32))
        ):
            self._drop(answer)
            raise unavailable(f"{whose}: no bearer token with a time to live", next_step="see that server")
        made = secret_of(answer, "access_token", "", whose=whose)
        return Issued(
            made,
            ttl_s=float(seconds) if seconds is not None else None,
            handle=answer["access_token"] if self._config.revocation_endpoint else "",
            reach="read" if read else "full",
        )

    def renew(self, handle: str, ttl_s: float) -> float:
        """Nothing to renew: a longer call needs a server that gives longer tokens."""
        raise unavailable(f"{self._name}: an access token is not renewed")

    def revoke(self, handle: str) -> None:
        """As `Provider`. RFC 7009: the server answers 200 for a token that it does not know any more, too."""
        with self._network.within(self._config.timeout_s, self._name), self._session() as session:
            answer = session.revoke_token(
                self._config.revocation_endpoint,
                token=handle,
                token_type_hint="access_token",  # noqa: S106 - a type's name (RFC 7009), no token
            )
        if answer.status_code != 200:
            raise refused(answer.status_code, self._name)

    def _request(self, asked: OAuthSecret, scope: str) -> dict[str, str]:
        fields = {"scope": scope, "audience": asked.audience, "resource": asked.resource}
        fields["grant_type"] = "client_credentials"
        if asked.subject_token:
            fields |= {
                "grant_type": _EXCHANGE,
                "subject_token": self._credential(asked.subject_token).decode("ascii", "strict"),
                "subject_token_type": asked.subject_type,
                "requested_token_type": _ACCESS_TOKEN,
            }
        return {name: value for name, value in fields.items() if value}

    def _fetch(self, whose: str, fields: dict[str, str]) -> dict[str, Any]:
        with self._network.within(self._config.timeout_s, whose), self._session() as session:
            status = 200

            def look(answer: Any) -> Any:
                nonlocal status
                status = answer.status_code
                return answer

            session.register_compliance_hook("access_token_response", look)
            try:
                answer = session.fetch_token(self._config.token_endpoint, **fields)
            except OAuthError as error:
                if status >= 500:
                    raise refused(status, whose) from None
                known = error.error if error.error in _ERRORS else "an error it has no name for"
                raise unavailable(f"{whose}: the server refused: {known}", next_step="see the client there") from None
            except (ValueError, TypeError, LookupError, AttributeError):
                raise (
                    refused(status, whose)
                    if status != 200
                    else unavailable(f"{whose}: an answer that is no token", next_step="see `token_endpoint`")
                ) from None
        if status != 200 or not isinstance(answer, dict):
            raise refused(status, whose)
        return dict(answer)

    def _drop(self, answer: dict[str, Any]) -> None:
        """A token that nobody will be given."""
        token = answer.get("access_token")
        if self._config.revocation_endpoint and isinstance(token, str):
            self.revoke(token)

    def _session(self) -> Any:
        name, secret = self._config.client_id, self._credential(self._config.client_secret).decode("ascii", "strict")
        if self._config.client_auth == "client_secret_basic":
            name, secret = quote_plus(name), quote_plus(secret)  # RFC 6749 §2.3.1, which Authlib leaves out
        made = OAuth2Session(
            name,
            secret,
            token_endpoint_auth_method=self._config.client_auth,
            revocation_endpoint_auth_method=self._config.client_auth,
            default_timeout=self._config.timeout_s,
        )
        self._network.prepare(made)
        return made


# RFC 6749 §5.2 and RFC 8693 §2.2.2: what may be repeated of a server's answer.
_ERRORS = frozenset(
    (
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_target",
    )
)
